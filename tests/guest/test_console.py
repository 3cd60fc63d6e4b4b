"""The interactive console on a terminal: a shell, escapes, and the terminal given back."""

from __future__ import annotations

import sys
import termios

import pexpect


def test_shell_escapes_and_terminal_restored() -> None:
    words = ["-m", "minivmm", "boot", "--accel", "kvm"]
    child = pexpect.spawn(sys.executable, words, timeout=120, encoding="utf-8")
    child.setecho(True)
    before = termios.tcgetattr(child.child_fd)
    child.expect("escape: Ctrl-A h")

    child.expect("# ")
    child.sendline("echo $((6 * 7))")
    child.expect("42")
    child.send("\x01h")
    child.expect("Ctrl-A x")
    child.send("\x01c")
    child.expect(r"\(minivmm\) ")
    child.send("info status\r")
    child.expect("VM status: running")
    child.send("\x01c\x01x")
    child.expect(pexpect.EOF)

    after = termios.tcgetattr(child.child_fd)
    child.close()
    assert child.exitstatus == 0
    assert after[:4] == before[:4]


def test_leaving_the_shell_powers_off() -> None:
    words = ["-m", "minivmm", "boot", "--accel", "kvm"]
    child = pexpect.spawn(sys.executable, words, timeout=120, encoding="utf-8")
    child.expect("# ")

    child.sendline("exit")
    child.expect(pexpect.EOF)

    child.close()
    assert child.exitstatus == 0
