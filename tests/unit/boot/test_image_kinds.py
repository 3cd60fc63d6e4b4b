"""What is told about files that are no kernels."""

import gzip
import lzma
from collections.abc import Callable
from typing import Any

import pytest

from minivmm.errors import ImageError

ARM64 = b"MZ" + bytes(0x36) + b"ARM\x64" + bytes(0x1000)
RISCV = bytes(0x38) + b"RSC\x05" + bytes(0x1000)


@pytest.mark.parametrize(
    ("content", "what"),
    [
        (b"", "an empty file"),
        (bytes(8192), "a file of zeroes"),
        (b"#!/bin/sh\necho hello\n", "a text file"),
        (gzip.compress(b"x"), "gzip-compressed"),
        (lzma.compress(b"x"), "xz-compressed"),
        (b"\x28\xb5\x2f\xfdrest", "zstd-compressed"),
        (b"070701000000", "cpio archive (an initramfs? then use --initrd)"),
        (b"!<arch>\ndebian-binary", "Debian package"),
        (ARM64, "an ARM64 kernel Image"),
        (RISCV, "a RISC-V kernel Image"),
        (b"MZ\0\0" + bytes(range(256)), "an EFI program"),
        (b"\x80\x81\x82\x83", "starts with 80 81 82 83"),
    ],
)
def test_foreign_file_is_named(load: Callable[..., Any], content: bytes, what: str) -> None:
    with pytest.raises(ImageError) as caught:
        load(content, name="/tmp/file")
    message = str(caught.value)
    assert message.startswith("/tmp/file: not a kernel but ")
    assert what in message
    assert "pass an x86-64 bzImage" in message


def test_both_kinds_are_recognised(
    load: Callable[..., Any], bzimage: Callable[..., bytes], vmlinux: bytes
) -> None:
    assert load(bzimage()).sregs.code.l == 1
    assert load(vmlinux).sregs.code.db == 1
