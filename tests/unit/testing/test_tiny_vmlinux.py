"""The ELF image of a few instructions is one that our loader takes, and enters at its code."""

from __future__ import annotations

from minivmm.boot.elf import parse
from minivmm.testing.tiny_kernel import FOREVER, INVALID, LOAD_ADDRESS, vmlinux


def test_the_code_is_where_it_is_entered() -> None:
    image = parse(vmlinux(INVALID + FOREVER), "vmlinux")

    assert image.entry == LOAD_ADDRESS
    assert image.segments == ((LOAD_ADDRESS, INVALID + FOREVER),)
