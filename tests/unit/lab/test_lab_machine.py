"""Command lines, the initramfs and the messages for what the host lacks; nothing is started."""

from __future__ import annotations

import os
import pty
import struct
import termios
from collections.abc import Iterator
from pathlib import Path

import pytest

from minivmm.errors import HostError, ImageError, UsageError
from minivmm.guest.kernels import Kernel
from minivmm.lab import machine
from minivmm.lab.console import Console
from minivmm.lab.image import build_image, without_signature
from minivmm.lab.lab import MARK, Lab
from minivmm.lab.loop import Loop
from minivmm.lab.terminal import raw_mode, terminals, window_size

KERNEL = Kernel("6.12.1", Path("/boot/vmlinuz"), None)


def option(command: list[str], name: str) -> list[str]:
    """The values given to option `name`, in order."""
    return [command[i + 1] for i, word in enumerate(command) if word == name]


def open_descriptors() -> list[str]:
    return sorted(path.name for path in Path("/proc/self/fd").iterdir())


def a_qemu_command(cpus: int = 1, append: tuple[str, ...] = ()) -> list[str]:
    return machine.qemu_command(
        "qemu",
        kernel=Path("/k"),
        initrd="/i",
        memory=3 << 30,
        cpus=cpus,
        files=7,
        wire=9,
        append=append,
    )


def test_qemu_emulates_svm_and_ends_at_reboot() -> None:
    command = a_qemu_command()

    assert "+svm" in option(command, "-cpu")[0].split(",")
    assert option(command, "-accel") == ["tcg,thread=multi"]
    assert "-no-reboot" in command
    assert {"panic=-1", "oops=panic"} <= set(option(command, "-append")[0].split())


def test_more_kernel_options_follow_our_own() -> None:
    words = option(a_qemu_command(append=("hugepagesz=1G", "hugepages=1")), "-append")[0].split()

    assert words[-2:] == ["hugepagesz=1G", "hugepages=1"]
    assert "oops=panic" in words


def test_qemu_memory_is_shared_for_virtiofsd() -> None:
    command = a_qemu_command()

    assert option(command, "-m") == ["3072M"]
    assert option(command, "-object") == ["memory-backend-memfd,id=memory,size=3072M,share=on"]


@pytest.mark.parametrize(
    ("cpus", "smp"), [(1, "1,maxcpus=2"), (2, "2,maxcpus=2"), (3, "3,maxcpus=3")]
)
def test_qemu_never_thinks_that_it_is_alone(cpus: int, smp: str) -> None:
    assert option(a_qemu_command(cpus), "-smp") == [smp]


@pytest.mark.parametrize(
    ("version", "cpus"),
    [
        ("QEMU emulator version 7.2.22 (Debian 1:7.2+dfsg)", 1),
        ("QEMU emulator version 8.0.9", 1),
        ("QEMU emulator version 8.1.0", 2),
        ("QEMU emulator version 10.0.2", 2),
        ("", 1),
    ],
)
def test_old_qemu_gets_one_processor(version: str, cpus: int) -> None:
    assert machine.usable_cpus(version, 2) == cpus


def test_qemu_gets_connected_sockets_by_descriptor() -> None:
    chardevs = option(a_qemu_command(), "-chardev")

    assert "socket,id=files,fd=7" in chardevs
    assert "socket,id=wire,fd=9" in chardevs


def test_file_server_trusts_its_cache_and_needs_a_namespace_only_for_users() -> None:
    as_root = machine.virtiofsd_command("/v", 5, root=True)
    as_user = machine.virtiofsd_command("/v", 5, root=False)

    assert as_root[:3] == ["/v", "-f", "--fd=5"]
    assert {"source=/", "cache=always"} <= set(option(as_root, "-o")[0].split(","))
    assert as_user[0] == "unshare"
    assert as_user[4 : 4 + len(as_root)] == as_root


def test_missing_qemu_is_named_with_its_package(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))

    with pytest.raises(HostError, match=r"apt-get install qemu-system-x86`"):
        machine.find_qemu()


def test_missing_virtiofsd_is_named_with_its_packages(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setattr(machine, "VIRTIOFSD_PLACES", (str(tmp_path / "virtiofsd"),))

    with pytest.raises(HostError, match=r"qemu-system-common.*virtiofsd"):
        machine.find_virtiofsd()


def test_kernel_is_told_the_counters_rate_before_the_users_options(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    told = tmp_path / "told"
    qemu = tmp_path / "qemu"
    qemu.write_text(f'#!/bin/sh\necho "$@" >>{told}\n')
    qemu.chmod(0o755)
    monkeypatch.setattr(machine, "find_qemu", lambda: str(qemu))
    monkeypatch.setattr(machine, "find_virtiofsd", lambda: "/bin/true")
    monkeypatch.setattr(machine, "counter_khz", lambda: 2_596_132)

    made = machine.OuterMachine(Path("/k"), b"", memory=1 << 30, cpus=1, append=("nosmt",))
    for process in made._processes:
        process.wait()
    os.close(made.wire)
    os.close(made.log)

    assert told.read_text().endswith(" tsc_early_khz=2596132 nosmt\n")


def test_unknown_rate_is_not_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(machine, "counter_khz", lambda: None)

    assert machine.clock_options() == []


def test_missing_setpriv_leaves_nothing_behind(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(machine, "find_qemu", lambda: "/bin/true")
    monkeypatch.setattr(machine, "find_virtiofsd", lambda: "/bin/true")
    monkeypatch.setenv("PATH", str(tmp_path))
    before = open_descriptors()

    with pytest.raises(HostError, match="util-linux"):
        machine.OuterMachine(Path("/k"), b"", memory=1 << 30, cpus=1)

    assert open_descriptors() == before


@pytest.mark.parametrize("memory", [1 << 20, (3 << 30) + 4096])
def test_unusable_memory_is_refused(monkeypatch: pytest.MonkeyPatch, memory: int) -> None:
    monkeypatch.delenv(MARK, raising=False)

    with pytest.raises(UsageError, match="multiple of 1M, at least 256M"):
        Lab(KERNEL, memory=memory)


def test_lab_in_the_lab_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(MARK, "1")

    with pytest.raises(HostError, match="the lab already"):
        Lab(KERNEL)


def test_image_has_init_and_knows_the_host_python() -> None:
    image = build_image("6.12.1", None)

    assert image.startswith(b"070701")
    for content in (b"lab.conf\0", b"PYTHON=", b"bin/switch_root\0", b"mount -t virtiofs host"):
        assert content in image


def test_kernel_without_kvm_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ImageError, match="no module kvm_amd"):
        build_image("6.12.1", tmp_path)


def test_signature_is_cut_off() -> None:
    info = struct.pack(">BBBBB3xI", 0, 0, 2, 0, 0, 100)

    assert (
        without_signature(b"ELF" + bytes(100) + info + b"~Module signature appended~\n") == b"ELF"
    )
    assert without_signature(b"ELF") == b"ELF"


@pytest.mark.parametrize(
    ("output", "words"),
    [
        (b"", "it said nothing"),
        (b"qemu: bad option\r\n\nvirtio_loop: Unexpected poll revents 11\n", "qemu: bad option"),
        (
            b"[    1.5] x\nFileNotFoundError: agent\n[    2.25] Kernel panic - not syncing: init!\n"
            b"[    2.3] Call Trace:\n",
            "FileNotFoundError: agent; Kernel panic - not syncing: init!",
        ),
        (
            b"[    1.1] Oops: int3: 0000\n[    1.2] RSP: 0018\n[    1.3] Kernel panic - fatal\n",
            "Oops: int3: 0000; Kernel panic - fatal",
        ),
    ],
)
def test_last_words_name_the_cause(output: bytes, words: str) -> None:
    read_end, write_end = os.pipe()
    loop = Loop()
    console = Console(loop, read_end)
    os.write(write_end, output)
    os.close(write_end)

    console.drain(5)

    assert console.last_words() == words
    console.close()
    loop.close()


@pytest.fixture
def terminal() -> Iterator[int]:
    master, slave = pty.openpty()
    yield slave
    os.close(master)
    os.close(slave)


def test_terminal_is_made_only_for_input_and_output_together(terminal: int) -> None:
    with Path(os.devnull).open() as null:
        fd = null.fileno()

        assert terminals((terminal, terminal, terminal)) == [0, 1, 2]
        assert terminals((terminal, fd, terminal)) == [0, 2]
        assert terminals((terminal, fd, fd)) == []
        assert terminals((fd, terminal, terminal)) == []


def test_raw_mode_is_undone_after_an_error(terminal: int) -> None:
    before = termios.tcgetattr(terminal)

    with pytest.raises(RuntimeError), raw_mode(terminal):
        assert termios.tcgetattr(terminal) != before
        raise RuntimeError

    assert termios.tcgetattr(terminal) == before


def test_window_size_of_what_is_no_terminal_is_the_usual() -> None:
    with Path(os.devnull).open() as null:
        assert window_size(null.fileno()) == (24, 80)
