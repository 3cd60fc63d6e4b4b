"""Devices that tests pass on to a guest: QEMU's edu, driven by devmem, and an NVMe disk."""

from __future__ import annotations

import subprocess
from functools import cached_property

from harness import Guest

EDU, NVME = "0000:00:10.0", "0000:00:11.0"
"""Where scripts/test has the lab put them."""
KERNEL = "6.12"

SCRATCH = 0xD0000
"""RAM that Linux leaves alone, as PCs have ROMs there, and lets root use through /dev/mem."""
RESULT = SCRATCH + 0x8000
"""The same, for what comes back."""
PAGE = 2048
"""Bytes of a transfer; edu has a buffer of 4 KiB."""

_BUFFER = 0x40000
_SOURCE, _TARGET, _COUNT, _COMMAND = 0x80, 0x88, 0x90, 0x98
_START, _TO_RAM = 1, 2

FUNCTIONS = f"""
transfer() {{ # SOURCE TARGET COMMAND
    devmem $((edu + {_SOURCE:#x})) 64 $1 && devmem $((edu + {_TARGET:#x})) 64 $2 &&
    devmem $((edu + {_COUNT:#x})) 64 {PAGE} && devmem $((edu + {_COMMAND:#x})) 64 $3 &&
    while [ $(($(devmem $((edu + {_COMMAND:#x})) 64) & {_START})) = 1 ]; do :; done
}}
load() {{ transfer $1 {_BUFFER:#x} {_START}; }}
store() {{ transfer {_BUFFER:#x} $1 {_START | _TO_RAM}; }}
fill() {{
    head -c {PAGE} /dev/urandom | dd of=/dev/mem bs={PAGE} seek=$(($1 / {PAGE})) 2>/dev/null
}}
sum() {{ dd if=/dev/mem bs={PAGE} skip=$(($1 / {PAGE})) count=1 2>/dev/null | md5sum; }}
"""
"""For the guest's shell: `load ADDRESS` has edu read memory, `store ADDRESS` has it write."""


class Edu:
    """QEMU's device for teaching DMA, in `guest`."""

    def __init__(self, guest: Guest) -> None:
        self._guest = guest

    @cached_property
    def preamble(self) -> str:
        """Shell that has FUNCTIONS at hand; the device decodes its BAR, and may use the bus."""
        directory = self._guest.shell(
            "cd /sys/bus/pci/devices && for d in *; do"
            " [ $(cat $d/device) = 0x11e8 ] && cd $d && pwd; done; true"
        )
        bar = self._guest.shell(
            f"cd {directory} && printf '\\006' | dd of=config bs=1 seek=4 conv=notrunc 2>/dev/null"
            " && cut -d' ' -f1 resource | head -n 1"
        )
        return f"edu={bar}\n{FUNCTIONS}"

    def shell(self, script: str) -> str:
        """Output of a shell script that has FUNCTIONS at hand."""
        return self._guest.shell(self.preamble + script)

    def keeps(self, address: int) -> bool:
        """Does memory at `address` hold what the device writes, until it reads that?"""
        before, between, after = self.shell(
            f"fill {SCRATCH}; sum {SCRATCH}; load {SCRATCH}; store {address};"
            f"fill {SCRATCH}; sum {SCRATCH}; load {SCRATCH};"  # other content in the device
            f"load {address}; store {RESULT}; sum {RESULT}"
        ).splitlines()
        assert before != between
        return before == after


def host_log() -> list[str]:
    """The kernel's log of the machine that the device belongs to."""
    return subprocess.run(["dmesg"], capture_output=True, text=True, check=True).stdout.splitlines()
