"""Guests that never become useful, and users in a hurry: one line, the right status, no remains."""

from __future__ import annotations

import os
import signal
import struct
import tempfile
from pathlib import Path

import pytest
from harness import Finished, minivmm, start

from minivmm.cli import run as minivmm_run
from minivmm.guest.initramfs import Archive

LONG_ENTRY = 0x200
"""Where a bzImage's code is entered in 64-bit mode; Documentation/arch/x86/boot.rst."""

INVALID = b"\x0f\x0b"  # ud2, without an IDT to go to: a triple fault
FOREVER = b"\xeb\xfe"  # jmp to itself


@pytest.fixture
def runs(runtime_dir: Path) -> Path:
    """The runtime directory, which every boot here must leave empty."""
    assert list(runtime_dir.iterdir()) == []
    return runtime_dir


def bzimage(path: Path, code: bytes) -> str:
    """A kernel image, complete by the boot protocol, of nothing but `code`."""
    body = (bytes(LONG_ENTRY) + code).ljust(0x1000, b"\x90")
    head = bytearray(2 * 512)
    fields: tuple[tuple[int, str, int], ...] = (
        (0x1F1, "<B", 1),  # setup_sects
        (0x1F4, "<I", len(body) // 16),
        (0x1FE, "<H", 0xAA55),
        (0x200, "<H", 0x6AEB),
        (0x202, "<I", 0x53726448),  # "HdrS"
        (0x206, "<H", 0x020F),
        (0x211, "<B", 1),  # loaded high
        (0x22C, "<I", 0x7FFFFFFF),  # initrd_addr_max
        (0x230, "<I", 2 << 20),  # kernel_alignment
        (0x234, "<B", 1),  # relocatable
        (0x236, "<H", 3),  # has a 64-bit entry
        (0x238, "<I", 2047),  # cmdline_size
        (0x258, "<Q", 16 << 20),  # pref_address
        (0x260, "<I", 8 << 20),  # init_size
    )
    for offset, form, value in fields:
        struct.pack_into(form, head, offset, value)
    path.write_bytes(bytes(head) + body)
    return str(path)


def boot(*words: str) -> Finished:
    return minivmm("boot", "--accel", "kvm", *words)


def test_a_kernel_that_triple_faults_at_once_is_134(runs: Path, tmp_path: Path) -> None:
    done = boot("-k", bzimage(tmp_path / "bad", INVALID), "--", "true")

    assert done.returncode == 134
    assert done.stderr.startswith("minivmm: the guest triple-faulted: cpu0 rip=")
    assert done.stderr.count("\n") == 1
    assert list(runs.iterdir()) == []


def test_a_kernel_that_never_starts_is_not_waited_for_forever(
    runs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    kernel = bzimage(tmp_path / "forever", FOREVER)
    monkeypatch.setattr(minivmm_run, "READY_TIMEOUT", 2.0)

    timed_out = boot("-k", kernel, "--timeout", "1s")
    never_ready = boot("-k", kernel, "--", "true")

    assert (timed_out.returncode, never_ready.returncode) == (124, 134)
    assert "not finished after 1 s" in timed_out.stderr
    assert "not ready for a command after 2 s" in never_ready.stderr
    assert list(runs.iterdir()) == []


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGQUIT])
def test_signals_at_any_moment_leave_nothing(
    runs: Path, tmp_path: Path, number: signal.Signals
) -> None:
    kernel = bzimage(tmp_path / "forever", FOREVER)
    for moment in (0.1, 0.3, 0.5, 0.7, 0.9, 1.2):
        with tempfile.TemporaryFile() as out:
            child = start(["boot", "--accel", "kvm", "-k", kernel], out.fileno(), out.fileno())
            child.join(moment)
            assert child.pid is not None
            os.kill(child.pid, number)
            child.join(20)
            out.seek(0)
            said = out.read().decode()

        assert list(runs.iterdir()) == [], moment
        if child.exitcode != -number:  # the interpreter was not even up
            assert child.exitcode == 130, said
            assert said.startswith("minivmm: ") and said.count("\n") == 1


def test_a_guest_without_init_panics_with_134(runs: Path, tmp_path: Path) -> None:
    archive = Archive()
    archive.add_directory("/dev")
    empty = tmp_path / "empty.cpio"
    empty.write_bytes(archive.build())

    done = boot("-i", str(empty), "-a", "root=/dev/none", "--", "true")

    assert done.returncode == 134
    assert "guest panicked: VFS: Unable to mount root fs" in done.stderr.splitlines()[-1]
    assert list(runs.iterdir()) == []


@pytest.mark.parametrize(
    ("command", "status", "said"),
    [
        (("no-such-command",), 127, "not found"),
        (("/etc/passwd",), 126, "denied"),
        (("sh", "-c", "poweroff -f; sleep 60"), 134, "powered off before the command ended"),
    ],
)
def test_commands_that_cannot_run_have_the_shells_statuses(
    runs: Path, command: tuple[str, ...], status: int, said: str
) -> None:
    done = boot("--", *command)

    assert done.returncode == status
    assert said in done.stderr
    assert list(runs.iterdir()) == []
