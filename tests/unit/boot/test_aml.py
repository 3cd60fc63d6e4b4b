"""AML encodings against examples worked out from ACPI 6.5 chapter 20."""

import pytest

from minivmm.boot import aml
from minivmm.spec.acpi_resources import IoPorts


@pytest.mark.parametrize(
    ("text", "encoded"),
    [
        ("_HID", b"_HID"),
        ("A", b"A___"),
        ("\\_SB", b"\\_SB_"),
        ("\\_SB.PCI0", b"\\\x2e_SB_PCI0"),
        ("A.B.C", b"\x2f\x03A___B___C___"),
    ],
)
def test_path(text: str, encoded: bytes) -> None:
    assert aml.path(text) == encoded


@pytest.mark.parametrize("text", ["", "ABCDE", "1ABC", "A-B", "abc", "A..B"])
def test_bad_name_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match="no AML name"):
        aml.path(text)


@pytest.mark.parametrize(
    ("value", "encoded"),
    [
        (0, b"\x00"),
        (1, b"\x01"),
        (2, b"\x0a\x02"),
        (0xFF, b"\x0a\xff"),
        (0x100, b"\x0b\x00\x01"),
        (0xFFFF, b"\x0b\xff\xff"),
        (0x10000, b"\x0c\x00\x00\x01\x00"),
        (0xFFFFFFFF, b"\x0c\xff\xff\xff\xff"),
        (1 << 32, b"\x0e\x00\x00\x00\x00\x01\x00\x00\x00"),
    ],
)
def test_integer_takes_the_shortest_form(value: int, encoded: bytes) -> None:
    assert aml.integer(value) == encoded


@pytest.mark.parametrize("value", [-1, 1 << 64])
def test_integer_out_of_range_is_refused(value: int) -> None:
    with pytest.raises(ValueError, match="64-bit"):
        aml.integer(value)


def test_eisa_id() -> None:
    assert aml.eisa_id("PNP0A03") == b"\x0c\x41\xd0\x0a\x03"


@pytest.mark.parametrize(
    ("length", "prefix"),
    [
        (1, b"\x06"),  # 1 + 4 bytes of name + the length byte itself
        (58, b"\x3f"),  # 63: the longest in one byte
        (59, b"\x41\x04"),  # 65 = 0x041
        (4089, b"\x4f\xff"),  # 4095: the longest in two
        (4090, b"\x81\x00\x01"),  # 4097 = 0x1001
        (1 << 16, b"\x87\x00\x10"),  # 65536 + 7 = 0x10007
    ],
)
def test_package_length_counts_itself(length: int, prefix: bytes) -> None:
    encoded = aml.scope("ABCD", b"x" * length)
    assert encoded == b"\x10" + prefix + b"ABCD" + b"x" * length


def test_resource_template_is_a_buffer_with_end_tag() -> None:
    encoded = aml.resources(IoPorts(minimum=0x3F8, maximum=0x3F8, length=8))
    assert encoded == b"\x11\x0d\x0a\x0a\x47\x01\xf8\x03\xf8\x03\x01\x08\x79\x00"


def test_method_is_serialized() -> None:
    assert aml.method("_EVT", 1)[-1] == 0x09
