"""Programs of one system call do it, here on the host."""

from __future__ import annotations

import subprocess
from pathlib import Path

from minivmm.guest.next_kernel import load_program, start_program, syscall_program

_WRITE, _CLOSE = 1, 3  # asm/unistd_64.h
_EBADF = 9


def run(program: bytes, folder: Path) -> subprocess.CompletedProcess[bytes]:
    path = folder / "program"
    path.write_bytes(program)
    path.chmod(0o755)
    return subprocess.run([path], capture_output=True, check=False)


def test_a_call_gets_its_arguments_and_its_error_becomes_the_status(tmp_path: Path) -> None:
    done = run(syscall_program(_WRITE, 1, b"hello", 5), tmp_path)
    assert done.stdout == b"hello"
    assert run(syscall_program(_CLOSE, 77), tmp_path).returncode == _EBADF


def test_what_loads_a_kernel_has_the_command_line(tmp_path: Path) -> None:
    program = load_program("console=ttyS0 quiet")
    assert program.endswith(b"console=ttyS0 quiet\0")
    assert program.startswith(b"\x7fELF")
    assert start_program() != program
