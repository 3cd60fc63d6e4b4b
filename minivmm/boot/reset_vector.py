"""All the firmware there is: what runs when a guest restarts by jumping to the reset vector.

Linux does that on hardware-reduced ACPI without EFI: it prefers EFI's restart over the ACPI reset
register there, finds none, and goes on to the BIOS (arch/x86/kernel/reboot.c, reboot_init).
"""

from __future__ import annotations

from minivmm.boot.places import RESET_VECTOR
from minivmm.memory.guest import GuestMemory
from minivmm.spec.platform import RESET_PORT, RESET_VALUE

CODE = (
    b"\xba" + RESET_PORT.to_bytes(2, "little")  # mov dx, RESET_PORT
    + b"\xb0" + bytes([RESET_VALUE])  # mov al, RESET_VALUE
    + b"\xee"  # out dx, al
    + b"\xf4"  # hlt
    + b"\xeb\xfd"  # jmp to the hlt
)  # fmt: skip
"""16-bit code, at most 16 bytes: presses the reset button, and waits for it to work."""


def write_reset_vector(memory: GuestMemory) -> None:
    """Store the code. Raises GuestAddressError if there is no RAM at the end of the first MiB."""
    memory.write(RESET_VECTOR, CODE)
