"""Configuration space: write masks, the capability chain, watchers."""

import pytest

from minivmm.pci.config import ConfigSpace
from minivmm.spec import pci


def make_config() -> ConfigSpace:
    return ConfigSpace(pci.Header(vendor_id=0x1234, device_id=0x5678))


@pytest.mark.rule("PCI-D-1")
def test_read_only_bytes_ignore_writes() -> None:
    config = make_config()
    config.write(0, 4, 0xFFFFFFFF)
    assert config.read(0, 4) == 0x56781234


def test_write_changes_writable_bits_only() -> None:
    config = make_config()
    config.declare(0x44, b"\x0f\x00", b"\xf0\x01")
    config.write(0x44, 2, 0xAAAA)
    assert config.read(0x44, 2) == 0x00AF


def test_byte_write_leaves_its_neighbours() -> None:
    config = make_config()
    config.declare(0x44, b"\x11\x22\x33\x44", b"\xff" * 4)
    config.write(0x45, 1, 0xEE)
    assert config.read(0x44, 4) == 0x4433EE11


def test_there_is_no_extended_space_and_it_ignores_writes() -> None:
    config = make_config()
    config.write(0x100, 4, 0xFFFFFFFF)
    assert config.read(0x100, 4) == 0xFFFFFFFF
    assert config.read(0xFFC, 4) == 0xFFFFFFFF


@pytest.mark.rule("PCI-D-1")
def test_capabilities_form_a_chain_that_ends_in_zero() -> None:
    config = make_config()
    first = config.add_capability(pci.MsixCapability())
    second = config.add_capability(pci.MsixCapability())
    assert config.read(pci.STATUS, 2) & pci.Status.CAPABILITY_LIST
    assert config.read(pci.CAPABILITIES, 1) == first
    assert config.read(first + 1, 1) == second
    assert config.read(second + 1, 1) == 0
    assert first % 4 == second % 4 == 0


def test_capabilities_that_do_not_fit_are_refused() -> None:
    config = make_config()
    with pytest.raises(ValueError, match="no room"):
        for _ in range(64):
            config.add_capability(pci.MsixCapability())


def test_watchers_are_called_for_any_overlap_and_only_then() -> None:
    config = make_config()
    config.declare(0x44, bytes(4), b"\xff" * 4)
    calls: list[str] = []
    config.watch(
        0x44,
        4,
        before_read=lambda: calls.append("read"),
        after_write=lambda: calls.append("write"),
    )
    config.read(0x40, 4)
    config.write(0x48, 4, 0)
    assert calls == []
    config.read(0x47, 1)
    config.write(0x46, 2, 1)
    assert calls == ["read", "write"]


def test_reset_restores_every_byte() -> None:
    config = make_config()
    config.declare(0x44, b"\x12\x34", b"\xff\xff")
    config.write(0x44, 2, 0xFFFF)
    config.reset()
    assert config.read(0x44, 2) == 0x3412
