"""The reset vector's code: sixteen bytes at most, and it writes the reset register."""

from minivmm.boot.places import ACPI, ACPI_ROOM, RESET_VECTOR
from minivmm.boot.reset_vector import CODE, write_reset_vector
from minivmm.memory.guest import GuestMemory
from minivmm.memory.region import Region


def test_code_writes_the_reset_value_to_the_reset_port() -> None:
    memory = GuestMemory()
    memory.add(0, Region(1 << 20), name="RAM")

    write_reset_vector(memory)

    assert memory.read(0xFFFF0, len(CODE)) == bytes.fromhex("ba0006 b006 ee f4 ebfd")
    memory.close()


def test_it_fits_below_1_mib_and_behind_the_tables() -> None:
    assert RESET_VECTOR + len(CODE) <= 1 << 20
    assert ACPI + ACPI_ROOM <= RESET_VECTOR
