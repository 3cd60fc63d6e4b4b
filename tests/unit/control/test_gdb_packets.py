"""The wire format of the GDB protocol, in pieces of any size, and damaged."""

from __future__ import annotations

import pytest

from minivmm.control.gdb_address import Address, join_address, parse_address
from minivmm.control.gdb_packets import (
    PACKET_MAX,
    Control,
    PacketReader,
    escape,
    frame,
    unescape,
)
from minivmm.control.gdb_registers import REGISTERS, from_hex, target_description, to_hex
from minivmm.errors import UsageError


def test_a_packet_has_the_checksum_of_the_manual() -> None:
    assert frame(b"OK") == b"$OK#9a"
    assert frame(b"") == b"$#00"


@pytest.mark.parametrize("size", [1, 2, 3, 100])
def test_packets_come_in_pieces(size: int) -> None:
    wire = b"+" + frame(b"qC") + b"\x03" + frame(b"g") + b"-"
    reader = PacketReader()

    got = [item for at in range(0, len(wire), size) for item in reader.feed(wire[at : at + size])]

    assert got == [b"qC", Control.INTERRUPT, b"g", Control.REPEAT]


@pytest.mark.parametrize("wire", [b"$g#00", b"$g#zz", b"$" + b"x" * (PACKET_MAX + 1)])
def test_damage_is_noticed_and_the_next_packet_understood(wire: bytes) -> None:
    reader = PacketReader()

    assert [*reader.feed(wire)] == [Control.DAMAGED]
    assert [*reader.feed(b"#00" + frame(b"g"))] == [b"g"]


def test_interrupts_inside_a_packet_are_data() -> None:
    assert [*PacketReader().feed(frame(b"X0,1:\x03"))] == [b"X0,1:\x03"]


def test_every_byte_can_be_sent() -> None:
    every = bytes(range(256))

    assert unescape(escape(every)) == every
    assert not set(escape(every).replace(b"}", b"")) & set(b"#$")


def test_registers_survive_the_way_through_hex() -> None:
    values = {register.name: number << 3 | 1 for number, register in enumerate(REGISTERS)}

    assert from_hex(to_hex(values)) == values


def test_the_description_names_what_gdb_requires() -> None:
    text = target_description()

    assert "<architecture>i386:x86-64</architecture>" in text
    for name in ("rax", "rip", "eflags", "st7", "fop", "xmm15", "mxcsr", "fs_base", "cr3", "efer"):
        assert f'<reg name="{name}"' in text


@pytest.mark.parametrize(
    ("text", "address"),
    [
        ("1234", Address(port=1234)),
        (":4321", Address(port=4321)),
        ("tcp::1234", Address(port=1234)),
        ("tcp:0.0.0.0:9", Address(host="0.0.0.0", port=9)),
        ("[::1]:1", Address(host="::1", port=1)),
    ],
)
def test_addresses(text: str, address: Address) -> None:
    assert parse_address(text) == address


@pytest.mark.parametrize("text", ["", "x", "70000", "host:", "unix:", "1.5"])
def test_bad_addresses(text: str) -> None:
    with pytest.raises(UsageError, match="examples"):
        parse_address(text)


def test_the_kernel_is_not_taken_for_an_address() -> None:
    assert join_address(["--gdb", "6.12"]) == ["--gdb=127.0.0.1:1234", "6.12"]
    assert join_address(["--gdb", "path/bzImage"])[1] == "path/bzImage"
    assert join_address(["--gdb", "4321", "-S"]) == ["--gdb=4321", "-S"]
    assert join_address(["--gdb=:1", "6.12"]) == ["--gdb=:1", "6.12"]
    assert join_address(["--gdb", "unix:/tmp/x"]) == ["--gdb=unix:/tmp/x"]
    assert join_address(["6.12", "--gdb"]) == ["6.12", "--gdb=127.0.0.1:1234"]
