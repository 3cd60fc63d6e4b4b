"""`boot` in this process, on a fake KVM: streams, ends, exit statuses, and what is left behind."""

import json
import os
import signal
import socket
import termios
import threading
import time
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from minivmm import board
from minivmm.accel import Accel
from minivmm.cli import boot_console, boot_gdb, main
from minivmm.cli import run as run_module
from minivmm.cli.boot import BootOptions
from minivmm.cli.run import boot_here
from minivmm.control.client import Client
from minivmm.control.gdb_packets import frame
from minivmm.devices.virtio_mem.spec import VirtioMemSpec
from minivmm.errors import GuestFailure, HostError, Interrupted, Timeout, UsageError
from minivmm.guest_image import GuestImage
from minivmm.kvm.debug import DebugFeatures
from minivmm.machine_spec import MachineSpec
from minivmm.runtime import claim
from minivmm.spec.platform import SERIAL_PORT, SLEEP_CONTROL_PORT, SLEEP_TYPE_S5
from minivmm.testing.fake_kvm import FakeSystem, FakeVcpu, FakeVm
from minivmm.tracing.reader import follow
from minivmm.tracing.wish import Wish
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


def test_a_live_view_is_served_while_it_runs(
    boot: Boot, runtime_root: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    pages: list[bytes] = []

    def look() -> None:
        said = ""
        deadline = time.monotonic() + 20
        while "http://" not in said and time.monotonic() < deadline:
            said += capfd.readouterr().err
            time.sleep(0.05)
        _, _, url = said.strip().rpartition(" ")
        with urllib.request.urlopen(url, timeout=10) as answer:
            pages.append(answer.read())
        with Client(runtime_root / "vm1" / "qmp.sock") as client:
            client.execute("quit")

    thread = later(look, runtime_root)

    assert boot(print_and_idle, ui="") == 0
    thread.join()
    assert b"<title>minivmm</title>" in pages[0]
    assert capfd.readouterr().err == "", "it ends without a word"


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
    monkeypatch.setattr(boot_console, "STDIN", slave)
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


def test_a_trace_tells_of_the_machine_from_its_beginning_to_its_end(
    boot: Boot, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "t.jsonl"

    assert boot(print_and_power_off, trace=path) == 0

    header, *events = map(json.loads, path.read_text().splitlines())
    assert header["name"] == "vm1"
    assert header["spec"]["memory"] == 64 << 20
    assert [device["id"] for device in header["devices"]][-1] == "vmem0"
    assert [(event["source"], event["name"]) for event in events][-1] == ("machine", "end")
    assert capfd.readouterr().err == ""


def test_a_full_disk_under_a_trace_is_a_line_and_the_guest_runs_on(
    boot: Boot, capfd: pytest.CaptureFixture[str]
) -> None:
    assert boot(print_and_power_off, trace=Path("/dev/full")) == 0

    first, second = capfd.readouterr().err.splitlines()
    assert "cannot write /dev/full: No space left on device" in first
    assert "events are missing in /dev/full" in second


def test_a_trace_file_that_cannot_be_written_is_refused_before_booting(
    boot: Boot, tmp_path: Path
) -> None:
    with pytest.raises(HostError, match="name another file with --trace") as failure:
        boot_here(SPEC, BootOptions(trace=tmp_path / "missing" / "t.jsonl"))

    assert failure.value.boot_status == 125


def test_rules_of_a_scenario_that_never_acted_are_told_at_the_end(
    boot: Boot, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    scenario = tmp_path / "rules.json"
    scenario.write_text('{"rules": [\n {"type": "PLUG", "answer": "BUSY"}]}')

    assert boot(print_and_power_off, scenario=scenario) == 0

    (line,) = capfd.readouterr().err.splitlines()
    told = "the rule never acted: PLUG: answer BUSY: nothing of that came"
    assert line == f"minivmm: {scenario}:2: {told}"


def test_a_scenario_for_a_device_that_is_not_there_ends_the_boot(
    boot: Boot, tmp_path: Path
) -> None:
    scenario = tmp_path / "rules.json"
    scenario.write_text('{"rules": [\n {"silence": true,\n "device": "vmem7"}]}')

    with pytest.raises(UsageError, match=r"rules\.json:3: .*vmem7"):
        boot(print_and_power_off, scenario=scenario)


def test_a_record_is_a_trace_that_can_be_replayed(boot: Boot, tmp_path: Path) -> None:
    path = tmp_path / "r.jsonl"

    assert boot(print_and_power_off, record=path) == 0

    header, *events = map(json.loads, path.read_text().splitlines())
    assert header["filter"]
    assert {event["source"] for event in events} <= {"vmem0", "machine"}
    assert main.run(["replay", str(path)]) == 0


def test_a_running_machine_can_be_followed(boot: Boot, runtime_root: Path) -> None:
    events: list[dict[str, object]] = []

    def look_and_quit() -> None:
        recording = follow(runtime_root / "vm1" / "trace.sock", Wish())
        with Client(runtime_root / "vm1" / "qmp.sock") as client:
            client.execute("qom-set", path="vmem0", property="requested-size", value=GIB)
            client.execute("quit")
        events.extend(recording.events)

    thread = later(look_and_quit, runtime_root)
    assert boot(print_and_idle) == 0
    thread.join()

    names = [event["name"] for event in events]
    assert names[0] == "resize"
    assert names[-1] == "end"


def test_gdb_finds_a_frozen_guest_before_its_first_instruction(
    boot: Boot,
    tmp_path: Path,
    runtime_root: Path,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setattr(boot_gdb, "probe", lambda system: DebugFeatures())
    path = tmp_path / "gdb.sock"
    states: list[str] = []
    answers: list[bytes] = []
    stopped, done = (b"+" + frame(body) for body in (b"T05thread:1;", b"OK"))

    def debug() -> None:
        with Client(runtime_root / "vm1" / "qmp.sock") as client:
            states.append(client.execute("query-status")["status"])
            with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as gdb:
                gdb.connect(str(path))
                gdb.sendall(frame(b"?"))
                answers.append(gdb.recv(len(stopped), socket.MSG_WAITALL))
                states.append(client.execute("query-status")["status"])
                gdb.sendall(frame(b"D"))
                answers.append(gdb.recv(len(done), socket.MSG_WAITALL))

    thread = later(debug, runtime_root)
    assert boot(print_and_power_off, gdb=f"unix:{path}", freeze=True) == 0
    thread.join()

    printed = capfd.readouterr()
    assert states == ["prelaunch", "debug"]
    assert answers == [stopped, done]
    assert printed.out == "hello\r\n"
    assert printed.err == f"minivmm: gdb can connect: target remote {path}\n"
    assert not path.exists()


def test_with_gdb_but_unfrozen_the_guest_runs_at_once(
    boot: Boot, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    features = DebugFeatures(software=False, hardware=False)
    monkeypatch.setattr(boot_gdb, "probe", lambda system: features)

    assert boot(print_and_power_off, gdb="0") == 0

    assert "no hardware breakpoints" in capfd.readouterr().err


def test_a_taken_port_is_told_and_nothing_runs_on(
    boot: Boot, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(boot_gdb, "probe", lambda system: DebugFeatures())
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]

        with pytest.raises(HostError, match=f"127.0.0.1:{port}.*choose another port"):
            boot(print_and_idle, gdb=str(port))


def test_a_second_terminal_sees_the_console_and_types(
    boot: Boot, runtime_root: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    guests: list[FakeVcpu] = []
    seen: list[object] = []

    def listen(vcpu: FakeVcpu) -> None:
        vcpu.script_out(SERIAL_PORT + 1, b"\x01")  # receive interrupts on
        vcpu.script_out(SERIAL_PORT, b"login: ")
        guests.append(vcpu)

    def watch() -> None:
        with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as console:
            console.connect(str(runtime_root / "vm1" / "console.sock"))
            seen.append(console.recv(100))
            console.sendall(b"k")
            time.sleep(0.1)
            answer = guests[0].script_in(SERIAL_PORT)
            guests[0].wait_idle()
            seen.append(answer.value)
            guests[0].script_out(SLEEP_CONTROL_PORT, POWER_OFF)
            seen.append(console.recv(100))

    thread = later(watch, runtime_root)
    assert boot(listen) == 0
    thread.join()

    assert seen == [b"login: ", ord("k"), b""]
    assert capfd.readouterr().out == "login: "
