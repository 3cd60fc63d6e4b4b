"""The tables of the C library's calls: made of what is declared now."""

from minivmm.memory.libc_declared import CALLS, made


def test_the_tables_are_those_of_the_declarations() -> None:
    assert CALLS.read_text() == made(), "run python -m minivmm.memory.libc_declared"
