"""guest/inside.sh on the host, over a tree of files that looks like a guest's /sys."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import pytest

import minivmm.guest
from minivmm.control.facts import parse_facts
from minivmm.units import GIB, MIB

SHELLS = {"dash": ["sh"], "busybox": ["busybox", "sh"]}
PCI = "0000:00:02.0"
BASE = 4 * GIB
LOG = """\
[    1.000000] virtio_mem virtio2: start address: 0x100000000
[    1.100000] virtio_mem virtio21: not ours
[    1.150000] virtio_mem virtio2: nid: 0
[    1.200000] virtio_mem virtio2: could not reserve device region
[    1.300000] virtio_mem: probe of virtio2 failed with error -16
"""


@pytest.fixture(params=SHELLS)
def shell(request: pytest.FixtureRequest) -> list[str]:
    words = SHELLS[str(request.param)]
    assert shutil.which(words[0]), f"{words[0]} is not installed: apt install busybox-static"
    return words


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """A guest with 128 MiB blocks, five of them from 4 GiB on, and driver virtio_mem bound."""
    memory = tmp_path / "devices/system/memory"
    memory.mkdir(parents=True)
    (memory / "block_size_bytes").write_text("8000000\n")
    (memory / "auto_online_blocks").write_text("online_movable\n")
    states = {
        31: ("online", "DMA32"),
        32: ("online", "Movable"),
        33: ("online", "Normal"),
        34: ("offline", "Movable"),
        39: ("going-offline", "none"),
        40: ("online", "Movable"),
    }
    for number, (state, zones) in states.items():
        entry = memory / f"memory{number}"
        entry.mkdir()
        (entry / "state").write_text(state + "\n")
        (entry / "valid_zones").write_text(zones + "\n")
    (tmp_path / "bus/pci/devices" / PCI / "virtio2").mkdir(parents=True)
    (tmp_path / "bus/virtio/drivers/virtio_mem/virtio2").mkdir(parents=True)
    (tmp_path / "meminfo").write_text("MemTotal:  1000 kB\nMemAvailable:   300 kB\n")
    commands = tmp_path / "bin"
    commands.mkdir()
    (tmp_path / "log").write_text(LOG)
    (commands / "dmesg").write_text(f"#!/bin/sh\ncat {tmp_path}/log\n")
    (commands / "dmesg").chmod(0o755)
    return tmp_path


def run(shell: list[str], root: Path, *words: str) -> str:
    script = (Path(minivmm.guest.__path__[0]) / "inside.sh").read_text()
    done = subprocess.run(
        [*shell, "-c", script, "inside", *words],
        env={
            "PATH": f"{root}/bin:/usr/sbin:/usr/bin:/sbin:/bin",
            "MINIVMM_SYS": str(root),
            "MINIVMM_MEMINFO": str(root / "meminfo"),
        },
        capture_output=True,
        text=True,
        timeout=20,
    )
    assert (done.returncode, done.stderr) == (0, "")
    return done.stdout


def test_blocks_of_the_region_are_counted_by_state_and_zone(shell: list[str], root: Path) -> None:
    facts = parse_facts(run(shell, root, "vmem0", PCI, str(BASE), str(GIB)))["vmem0"]

    assert facts.memory_block == 128 * MIB
    assert facts.policy == "online_movable"
    assert (facts.online, facts.offline, facts.kernel_zone) == (2, 2, 1)
    assert facts.available == 300 * 1024


def test_driver_states(shell: list[str], root: Path) -> None:
    def driver() -> str | None:
        return parse_facts(run(shell, root, "vmem0", PCI, str(BASE), str(GIB)))["vmem0"].driver

    assert driver() == "bound"
    (root / "bus/virtio/drivers/virtio_mem/virtio2").rmdir()
    assert driver() == "unbound"
    (root / "bus/virtio/drivers/virtio_mem").rmdir()
    assert driver() == "missing"


@pytest.mark.parametrize("shell", ["dash"], indirect=True)  # busybox's dmesg is its own
def test_log_lines_are_those_of_the_device_that_say_more_than_sizes(
    shell: list[str], root: Path
) -> None:
    facts = parse_facts(run(shell, root, "vmem0", PCI, str(BASE), str(GIB)))["vmem0"]

    assert facts.log == (
        "[    1.200000] virtio_mem virtio2: could not reserve device region",
        "[    1.300000] virtio_mem: probe of virtio2 failed with error -16",
    )


def test_several_devices_and_one_that_the_guest_does_not_have(shell: list[str], root: Path) -> None:
    words = ("a", PCI, str(BASE), str(256 * MIB), "b", "0000:00:09.0", str(BASE + GIB), str(GIB))
    found = parse_facts(run(shell, root, *words))

    assert (found["a"].online, found["a"].offline) == (2, 0)
    assert (found["b"].online, found["b"].driver, found["b"].log) == (1, "unbound", ())


def test_a_guest_without_memory_hotplug_tells_what_it_can(shell: list[str], root: Path) -> None:
    shutil.rmtree(root / "devices")
    facts = parse_facts(run(shell, root, "vmem0", PCI, str(BASE), str(GIB)))["vmem0"]

    assert (facts.memory_block, facts.online, facts.driver) == (None, None, "bound")
