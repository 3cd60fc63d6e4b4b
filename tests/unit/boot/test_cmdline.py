"""The command line as the kernel gets it."""

import pytest

from minivmm.boot.cmdline import encode_cmdline
from minivmm.errors import ImageError


def test_text_becomes_ascii_with_a_final_zero() -> None:
    assert encode_cmdline("console=ttyS0 quiet", 2047) == b"console=ttyS0 quiet\0"


def test_empty_line_is_a_single_zero() -> None:
    assert encode_cmdline("", 2047) == b"\0"


def test_a_kernel_that_takes_megabytes_still_gets_64_kib_at_most() -> None:
    assert len(encode_cmdline("x" * 65535, 1 << 30)) == 65536
    with pytest.raises(ImageError, match="65536 characters, this kernel takes 65535"):
        encode_cmdline("x" * 65536, 1 << 30)


@pytest.mark.parametrize("bad", ["a\0b", "a\nb", "ä", "\x7f"])
def test_characters_that_do_not_survive_are_refused(bad: str) -> None:
    with pytest.raises(ImageError, match="printable ASCII"):
        encode_cmdline(bad, 2047)
