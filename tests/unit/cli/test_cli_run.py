"""`boot` in this process, on a fake KVM: streams, ends, exit statuses, and what is left behind."""

import json
import os
import signal
import termios
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from minivmm import board
from minivmm.accel import Accel
from minivmm.cli import run as run_module
from minivmm.cli.boot import BootOptions
from minivmm.cli.run import boot_here
from minivmm.control.client import Client
from minivmm.devices.virtio_mem.spec import VirtioMemSpec
from minivmm.errors import GuestFailure, HostError, Interrupted, Timeout, UsageError
from minivmm.guest_image import GuestImage
from minivmm.machine_spec import MachineSpec
from minivmm.runtime import claim
from minivmm.spec.platform import SERIAL_PORT, SLEEP_CONTROL_PORT, SLEEP_TYPE_S5
from minivmm.testing.fake_kvm import FakeSystem, FakeVcpu, FakeVm
from minivmm.units import GIB

SPEC = MachineSpec(name="vm1", console="ttyS0", memory=64 << 20, devices=(VirtioMemSpec(size=GIB),))
POWER_OFF = bytes([SLEEP_TYPE_S5 << 2 | 0x20])

Script = Callable[[FakeVcpu], None]


class ScriptedSystem(FakeSystem):
    """A KVM whose guest does what `script` says, on its first vCPU."""

    def __init__(self, script: Script) -> None:
        super().__init__()
        self._script = script

    def create_vm(self) -> FakeVm:
        vm = super().create_vm()
        create = vm.create_vcpu

        def scripted(index: int) -> FakeVcpu:
            vcpu = create(index)
            if index == 0:
                self._script(vcpu)
            return vcpu

        vm.create_vcpu = scripted  # type: ignore[method-assign]
        return vm


Boot = Callable[..., int]


@pytest.fixture
def boot(runtime_root: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Boot]:
    """boot(script, **options) boots SPEC; afterwards nothing of it may be left."""
    image = GuestImage(b"", "fake", "", None)
    monkeypatch.setattr(run_module, "resolve", lambda spec, *, shell: image)
    monkeypatch.setattr(board, "load_kernel", lambda *_, **__: None)
    handlers = {number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGHUP)}
    threads = set(threading.enumerate())

    def start(script: Script, **options: object) -> int:
        system = ScriptedSystem(script)
        monkeypatch.setattr(run_module, "open_system", lambda: system)
        try:
            return boot_here(SPEC, BootOptions(**options))  # type: ignore[arg-type]
        finally:
            assert system.closed
            assert all(vm.closed for vm in system.vms)

    yield start
    for number, handler in handlers.items():
        signal.signal(number, handler)
    assert list(runtime_root.iterdir()) == []
    left = [t for t in set(threading.enumerate()) - threads if t.name not in ("stdin", "command")]
    assert left == []


def print_and_power_off(vcpu: FakeVcpu) -> None:
    vcpu.script_out(SERIAL_PORT, b"hello\r\n")
    vcpu.script_out(SLEEP_CONTROL_PORT, POWER_OFF)


def print_and_idle(vcpu: FakeVcpu) -> None:
    vcpu.script_out(SERIAL_PORT, b"hello\r\n")


def later(act: Callable[[], object], root: Path) -> threading.Thread:
    """Do something once the machine serves its control socket."""

    def wait_and_act() -> None:
        deadline = time.monotonic() + 5
        while not (root / "vm1" / "qmp.sock").exists() and time.monotonic() < deadline:
            time.sleep(0.01)
        time.sleep(0.05)
        act()

    thread = threading.Thread(target=wait_and_act)
    thread.start()
    return thread


def test_console_goes_to_stdout_and_power_off_is_0(
    boot: Boot, capfd: pytest.CaptureFixture[str]
) -> None:
    assert boot(print_and_power_off) == 0

    printed = capfd.readouterr()
    assert printed.out == "hello\r\n"
    assert printed.err == ""


def test_a_dying_guest_beside_a_command_shows_its_last_lines(
    boot: Boot,
    capfd: pytest.CaptureFixture[str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(run_module, "probe", lambda: Accel(True, "fine"))

    def die(vcpu: FakeVcpu) -> None:
        vcpu.script_out(SERIAL_PORT, b"Kernel panic - not syncing: no\r\n")
        vcpu.script_exit(17)  # KVM_EXIT_INTERNAL_ERROR

    status = tmp_path / "status.json"
    with pytest.raises(GuestFailure) as failure:
        boot(die, command=("true",), status=status)

    assert failure.value.boot_status == 134
    printed = capfd.readouterr()
    assert printed.out == ""
    assert "Kernel panic - not syncing: no\n" in printed.err
    written = json.loads(status.read_text())
    assert (written["status"], written["cause"]) == (134, "guest-failure")


def test_a_kvm_that_cannot_run_the_guest_is_our_failure(
    boot: Boot, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(run_module, "probe", lambda: Accel(False, "no VMX"))

    with pytest.raises(HostError, match="no VMX: try --accel lab") as failure:
        boot(lambda vcpu: vcpu.script_exit(17))

    assert failure.value.boot_status == 125


@pytest.mark.parametrize("place", [".", "missing/status.json"])
def test_a_status_file_that_cannot_be_written_is_refused_before_booting(
    runtime_root: Path, tmp_path: Path, place: str
) -> None:
    with pytest.raises(HostError, match="cannot write") as failure:
        boot_here(SPEC, BootOptions(status=tmp_path / place))

    assert failure.value.boot_status == 125
    assert not runtime_root.exists()


def test_a_status_file_that_is_a_device_stays_one(boot: Boot, tmp_path: Path) -> None:
    link = tmp_path / "status"
    link.symlink_to("/dev/null")

    assert boot(print_and_power_off, status=link) == 0

    assert link.is_symlink() and link.is_char_device()


def test_a_full_disk_does_not_hide_how_the_guest_ended(
    boot: Boot, capfd: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(GuestFailure, match="powered off"):
        boot(print_and_power_off, command=("true",), status=Path("/dev/full"))

    assert "cannot write /dev/full: No space left" in capfd.readouterr().err


def test_power_off_before_the_command_ended_is_a_failure(boot: Boot) -> None:
    with pytest.raises(GuestFailure, match="powered off before the command ended"):
        boot(print_and_power_off, command=("true",))


def test_timeout(boot: Boot, capfd: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(Timeout, match=r"after 0.2 s") as failure:
        boot(print_and_idle, command=("true",), timeout=0.2)

    assert failure.value.boot_status == 124
    assert "hello" in capfd.readouterr().err


def test_quiet_keeps_the_console_to_itself_but_verbose_shows_it(
    boot: Boot, capfd: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(GuestFailure):
        boot(print_and_power_off, command=("true",), verbose=True)

    printed = capfd.readouterr()
    assert "hello" in printed.err
    assert printed.out == ""


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_signals_end_a_guest_that_cannot_hear_of_them(
    boot: Boot, number: signal.Signals, runtime_root: Path
) -> None:
    thread = later(lambda: os.kill(os.getpid(), number), runtime_root)

    with pytest.raises(Interrupted, match=number.name) as failure:
        boot(print_and_idle)

    thread.join()
    assert failure.value.boot_status == 130


def test_quit_over_the_control_socket_is_0(boot: Boot, runtime_root: Path) -> None:
    answers: list[object] = []

    def quit_it() -> None:
        with Client(runtime_root / "vm1" / "qmp.sock") as client:
            answers.append(client.execute("x-minivmm-info"))
            answers.append(client.execute("quit"))
            answers.append(client.wait_closed(5))

    thread = later(quit_it, runtime_root)

    assert boot(print_and_idle) == 0

    thread.join()
    assert answers[1:] == [{}, True]
    info = answers[0]
    assert isinstance(info, dict)
    assert info["name"] == "vm1"
    assert info["memory-devices"][0]["max-size"] == GIB


def test_an_extra_qmp_socket_is_there_and_goes(
    boot: Boot, runtime_root: Path, tmp_path: Path
) -> None:
    extra = tmp_path / "extra.sock"

    def quit_it() -> None:
        with Client(extra) as client:
            client.execute("quit")

    thread = later(quit_it, runtime_root)

    assert boot(print_and_idle, qmp=extra) == 0

    thread.join()
    assert not extra.exists()


def test_stats_as_one_json_line(boot: Boot, capfd: pytest.CaptureFixture[str]) -> None:
    boot(print_and_power_off, stats=True, json=True)

    report = json.loads(capfd.readouterr().err)
    assert report["schema"] == 1
    assert {"kind": "io out", "address": SLEEP_CONTROL_PORT, "count": 1} in report["places"]


def test_the_spec_is_there_while_it_runs(boot: Boot, runtime_root: Path) -> None:
    found: list[object] = []

    def look_and_quit() -> None:
        found.append(json.loads((runtime_root / "vm1" / "spec.json").read_text()))
        with Client(runtime_root / "vm1" / "qmp.sock") as client:
            client.execute("quit")

    thread = later(look_and_quit, runtime_root)
    boot(print_and_idle)
    thread.join()

    assert isinstance(found[0], dict)
    assert found[0]["name"] == "vm1"
    assert found[0]["devices"][0]["id"] == "vmem0"


def test_a_name_that_runs_already_is_refused(boot: Boot, runtime_root: Path) -> None:
    other = claim("vm1")

    with pytest.raises(UsageError, match="running already"):
        boot_here(SPEC, BootOptions())

    other.remove()


def test_keys_reach_the_guest_and_ctrl_a_x_ends_it(
    boot: Boot,
    runtime_root: Path,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
) -> None:
    master, slave = os.openpty()
    monkeypatch.setattr(run_module, "STDIN", slave)
    before = termios.tcgetattr(slave)
    guests: list[FakeVcpu] = []
    seen: list[int | None] = []

    def listen(vcpu: FakeVcpu) -> None:
        vcpu.script_out(SERIAL_PORT + 1, b"\x01")  # receive interrupts on
        guests.append(vcpu)

    def type_keys() -> None:
        assert not termios.tcgetattr(slave)[3] & termios.ICANON
        os.write(master, b"k\x01s\x01h")
        time.sleep(0.1)
        answer = guests[0].script_in(SERIAL_PORT)
        guests[0].wait_idle()
        seen.append(answer.value)
        os.write(master, b"\x01x")

    thread = later(type_keys, runtime_root)
    assert boot(listen) == 0
    thread.join()

    assert seen == [ord("k")]
    assert termios.tcgetattr(slave) == before
    printed = capfd.readouterr().err.splitlines()
    assert printed[:2] == ["minivmm: escape: Ctrl-A h", "minivmm: vm1 running, vmem0 0/0"]
    assert printed[2].startswith("Ctrl-A h")
    os.close(master)
    os.close(slave)
