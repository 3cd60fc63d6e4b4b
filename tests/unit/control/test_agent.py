"""The host's end of the agent protocol, against a guest that is played by hand."""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator

import pytest

from minivmm.control.agent import GuestAgent
from minivmm.control.agent_session import Callbacks, Session
from minivmm.devices.virtio_console.device import CONTROL_PORT, VirtioConsole
from minivmm.errors import GuestFailure, MinivmmError, UsageError
from minivmm.testing.console_guest import PAGE, ConsoleGuest
from minivmm.testing.fake_agent import decode_script
from minivmm.trace import Trace


class Owner:
    """Records what a session tells."""

    def __init__(self) -> None:
        self.out = b""
        self.err = b""
        self.end: list[int | MinivmmError] = []
        self.taken = 0

    def callbacks(self) -> Callbacks:
        def add_out(data: bytes) -> None:
            assert not self.end, "output after the end"
            self.out += data

        def add_err(data: bytes) -> None:
            assert not self.end, "output after the end"
            self.err += data

        def add_taken(count: int) -> None:
            self.taken += count

        return Callbacks(add_out, add_err, self.end.append, self.end.append, add_taken)


class Rig:
    """Agent, device, and a guest whose control port the test reads and writes."""

    def __init__(self) -> None:
        self.console = VirtioConsole()
        self.lock = threading.RLock()
        self.guest = ConsoleGuest(self.console, self.lock)
        self.trace = Trace()
        self.agent = GuestAgent(self.console, self.trace)

    def move(self) -> None:
        """The guest goes on in another process, with an agent's host side of its own."""
        self.console = VirtioConsole()
        self.agent = GuestAgent(self.console, self.trace)
        self.guest.move(self.console)

    def boot(self) -> None:
        self.guest.probe()
        self.guest.open(CONTROL_PORT)
        self.say("ready 6.12.0")

    def say(self, line: str) -> None:
        self.guest.write(CONTROL_PORT, line.encode() + b"\n")

    def hear(self) -> list[str]:
        """The next line from the host, in words."""
        return self.guest.read(CONTROL_PORT, PAGE).decode().rstrip("\n").split(" ")

    def heard(self) -> bool:
        """Whether there is one."""
        return bool(self.guest.ports[CONTROL_PORT].unread)

    def run(self, *argv: str, stdin: bool = False) -> tuple[Session, Owner]:
        owner = Owner()
        return self.agent.run(argv or ["true"], owner.callbacks(), stdin=stdin), owner


@pytest.fixture
def rig() -> Iterator[Rig]:
    rig = Rig()
    with rig.lock:  # as always in device code
        rig.boot()
        yield rig
    assert not [event for event in rig.guest.events if event[0] == "bad-message"]


def test_agent_is_ready_once_it_says_so() -> None:
    rig = Rig()
    told: list[bool] = []
    rig.agent.on_ready.append(lambda: told.append(True))
    with pytest.raises(GuestFailure, match="not ready"):
        rig.run()

    rig.boot()

    assert told == [True]
    assert rig.agent.kernel_release == "6.12.0"


def test_command_runs_with_output_errors_and_status(rig: Rig) -> None:
    _, owner = rig.run("echo", "it's")
    verb, number, source, out, err, script = rig.hear()
    rig.guest.open(int(out))
    rig.guest.open(int(err))

    rig.guest.write(int(out), b"it's\n")
    rig.guest.write(int(err), b"oops\n")
    rig.say(f"exit {number} 7")

    assert (verb, source) == ("exec", "-")
    assert decode_script(script) == b"exec 'echo' 'it'\\''s'"
    assert (owner.out, owner.err, owner.end) == (b"it's\n", b"oops\n", [7])


def test_stdin_waits_for_the_handshake_and_ends_after_all_was_read(rig: Rig) -> None:
    session, owner = rig.run("cat", stdin=True)
    _, number, source, *_ = rig.hear()
    port = int(source)
    session.write_stdin(b"early ")
    rig.guest.open(port)
    assert not rig.guest.ports[port].unread

    rig.guest.write(port, b".")
    session.write_stdin(b"late")
    session.close_stdin()
    still_open = rig.guest.ports[port].host_open
    got = [rig.guest.read(port), rig.guest.read(port), rig.guest.read(port)]

    assert still_open, "end of file must not overtake data"
    assert got == [b"early ", b"late", b""]
    assert owner.taken == 10
    rig.guest.close(port)
    rig.say(f"exit {number} 0")
    assert owner.end == [0]


def test_empty_stdin_is_end_of_file_at_once(rig: Rig) -> None:
    session, _ = rig.run("cat", stdin=True)
    port = int(rig.hear()[2])
    session.close_stdin()

    rig.guest.open(port)
    rig.guest.write(port, b".")

    assert rig.guest.read(port) == b""


def test_stdin_port_is_open_again_for_the_next_session(rig: Rig) -> None:
    session, _ = rig.run("cat", stdin=True)
    _, number, source, *_ = rig.hear()
    session.close_stdin()
    rig.guest.open(int(source))
    rig.guest.write(int(source), b".")
    rig.guest.close(int(source))
    rig.say(f"exit {number} 0")

    again, _ = rig.run("cat", stdin=True)
    words = rig.hear()
    again.write_stdin(b"data")
    rig.guest.open(int(words[2]))
    rig.guest.write(int(words[2]), b".")

    assert rig.guest.read(int(words[2])) == b"data"


def test_input_without_reader_counts_as_taken(rig: Rig) -> None:
    session, owner = rig.run("true", stdin=True)
    port = int(rig.hear()[2])
    rig.guest.open(port)
    rig.guest.write(port, b".")
    session.write_stdin(b"x" * 200_000)

    rig.guest.close(port)
    session.write_stdin(b"y")

    assert owner.taken == 200_001


def test_output_in_the_queues_at_exit_is_delivered_although_throttled(rig: Rig) -> None:
    session, owner = rig.run()
    _, number, _, out, err, _ = rig.hear()
    rig.guest.open(int(out))
    rig.guest.open(int(err))
    session.set_throttled(True)
    for byte in range(16):
        rig.guest.write(int(out), bytes((byte,)))
    rig.guest.write(int(err), b"e")
    assert (owner.out, owner.err) == (b"", b"")

    rig.say(f"exit {number} 0")

    assert (owner.out, owner.err, owner.end) == (bytes(range(16)), b"e", [0])


def test_output_after_exit_goes_nowhere(rig: Rig) -> None:
    _, owner = rig.run()
    _, number, _, out, *_ = rig.hear()
    rig.guest.open(int(out))
    rig.say(f"exit {number} 0")

    rig.guest.write(int(out), b"from a background process")

    assert owner.out == b""


def test_sessions_wait_for_ports_in_order(rig: Rig) -> None:
    owners = [rig.run(f"c{n}", stdin=True)[1] for n in range(5)]
    running = [rig.hear() for _ in range(3)]
    assert not rig.heard(), "11 ports are enough for three sessions"
    ports = [int(port) for words in running for port in words[2:5]]
    assert len(set(ports)) == 9

    for port in running[1][2:5]:
        rig.guest.open(int(port))
    rig.say(f"exit {running[1][1]} 0")
    before_close = rig.heard()
    for port in running[1][2:5]:
        rig.guest.close(int(port))

    assert not before_close, "ports are free when the guest has closed them"
    assert decode_script(rig.hear()[5]) == b"exec 'c3'"
    assert [len(owner.end) for owner in owners] == [0, 1, 0, 0, 0]


def test_kill_is_passed_on(rig: Rig) -> None:
    session, owner = rig.run("sleep", "9")
    number = rig.hear()[1]

    session.kill(signal.SIGTERM)

    assert rig.hear() == ["kill", number, "15"]
    rig.say(f"exit {number} 143")
    assert owner.end == [143]
    session.kill(signal.SIGTERM)
    assert not rig.heard()


def test_killing_a_waiting_session_ends_it(rig: Rig) -> None:
    sessions = [rig.run(stdin=True) for _ in range(4)]

    sessions[3][0].kill(signal.SIGKILL)

    assert sessions[3][1].end == [137]
    assert rig.agent.inspect()["waiting"] == []


def test_failure_in_the_guest_is_reported_and_frees_ports(rig: Rig) -> None:
    _, owner = rig.run()
    number = rig.hear()[1]

    rig.say(f"failed {number} no such port")

    (error,) = owner.end
    assert isinstance(error, GuestFailure)
    assert "no such port" in str(error)
    assert rig.agent.inspect()["running"] == []


@pytest.mark.parametrize("event", ["device reset", "agent died", "agent restarted"])
def test_sessions_end_when_the_agent_goes(rig: Rig, event: str) -> None:
    owners = [rig.run(stdin=True)[1] for _ in range(5)]

    if event == "device reset":
        rig.guest.reset()
    elif event == "agent died":
        rig.guest.close(CONTROL_PORT)
    else:
        rig.say("ready 6.12.0")

    assert [type(end) for owner in owners for end in owner.end] == [GuestFailure] * 5
    assert rig.agent.ready == (event == "agent restarted")


@pytest.mark.parametrize("greeting", ["ready", "here"])
def test_agent_works_again_after_a_reset_of_its_driver(rig: Rig, greeting: str) -> None:
    """A new agent is ready, one that slept through suspend and resume answers hello."""
    rig.run(stdin=True)
    rig.guest.reset()
    rig.guest.probe()
    rig.guest.open(CONTROL_PORT)
    assert rig.hear() == ["hello"]
    rig.say(f"{greeting} 6.12.0")

    _, owner = rig.run("true")
    number = rig.hear()[1]
    rig.say(f"exit {number} 0")

    assert owner.end == [0]


def test_late_answer_to_hello_ends_no_session(rig: Rig) -> None:
    _, owner = rig.run()

    rig.say("here 6.12.0")

    assert rig.agent.ready
    assert owner.end == []


def test_owner_may_start_the_next_command_when_one_ends(rig: Rig) -> None:
    ends: list[int] = []

    def start_next(status: int) -> None:
        ends.append(status)
        rig.run("second")

    def unexpected(_: object) -> None:
        raise AssertionError

    callbacks = Callbacks(unexpected, unexpected, start_next, unexpected)
    rig.agent.run(["first"], callbacks)
    rig.say(f"exit {rig.hear()[1]} 3")

    assert ends == [3]
    assert decode_script(rig.hear()[5]) == b"exec 'second'"


@pytest.mark.parametrize(
    "line", ["", "exit", "exit x 0", "exit 99", "ready", "exit 1 -1", "bogus 1 2", "x" * 10_000]
)
def test_nonsense_from_the_guest_is_traced(rig: Rig, line: str) -> None:
    _, owner = rig.run()

    rig.say(line)

    assert [event.name for event in rig.trace.recent()][-1] == "bad-line"
    assert owner.end == []


def test_exit_of_an_unknown_session_is_ignored(rig: Rig) -> None:
    _, owner = rig.run()

    rig.say("exit 4711 0")

    assert owner.end == []
    assert rig.trace.recent()[-1].fields["known"] is False


def test_lines_may_arrive_in_pieces(rig: Rig) -> None:
    _, owner = rig.run()
    number = rig.hear()[1]

    for piece in (b"ex", f"it {number}".encode(), b" 5\n"):
        rig.guest.write(CONTROL_PORT, piece)

    assert owner.end == [5]


def test_quit_is_passed_on(rig: Rig) -> None:
    rig.agent.quit()

    assert rig.hear() == ["quit"]


def test_impossible_command_is_refused(rig: Rig) -> None:
    with pytest.raises(UsageError):
        rig.agent.run([], Owner().callbacks())


# -- the guest goes on in another process ----------------------------------------------------------


def test_restored_guest_is_greeted_and_ready_once_it_answers(rig: Rig) -> None:
    rig.move()

    assert not rig.agent.ready
    assert [rig.hear(), rig.hear()] == [["abandon"], ["hello"]]
    rig.say("here 6.12.0")
    assert rig.agent.ready
    assert rig.agent.kernel_release == "6.12.0"


def test_ends_of_commands_of_the_old_process_are_taken_for_nobodys(rig: Rig) -> None:
    """They may come at any time; ids must not be given out twice, whatever number of moves."""
    ids = []
    for _ in range(3):
        _, owner = rig.run("true")
        ids.append(rig.hear()[1])
        rig.move()
        rig.hear(), rig.hear()
        rig.say("here 6.12.0")
        _, owner = rig.run("true")
        for old in ids:
            rig.say(f"exit {old} 137")
        assert owner.end == []
        ids.append(rig.hear()[1])
        rig.say(f"exit {ids[-1]} 0")
        assert owner.end == [0]

    assert len(set(ids)) == len(ids)


def test_ports_of_old_commands_are_used_again_when_the_guest_has_closed_them(rig: Rig) -> None:
    rig.run(stdin=True)
    number, source, output, errors = rig.hear()[1:5]
    ports = [int(port) for port in (source, output, errors)]
    for port in ports:
        rig.guest.open(port)
    rig.guest.write(ports[0], b".")
    rig.move()
    rig.hear(), rig.hear()
    rig.say("here 6.12.0")

    rig.guest.write(ports[1], b"output of nobody's command")
    taken = [set(map(int, rig.hear()[2:5])) for _ in range(2) if rig.run(stdin=True)]
    assert not any(set(ports) & those for those in taken)
    rig.run(stdin=True)
    assert not rig.heard()
    rig.say(f"exit {number} 137")
    for port in ports:
        rig.guest.close(port)

    assert set(map(int, rig.hear()[2:5])) == set(ports)


def test_guest_that_was_saved_while_its_driver_was_away_is_greeted_later(rig: Rig) -> None:
    """Suspend and resume reset the driver, and the agent does not notice."""
    rig.guest.reset()
    rig.move()
    rig.guest.probe()
    rig.guest.open(CONTROL_PORT)

    assert rig.hear() == ["hello"]


def test_line_that_was_on_its_way_arrives_whole_before_the_greeting(rig: Rig) -> None:
    """The buffers of the guest are full; what waits for room is part of the state."""
    command = "x" * 3000
    for _ in range(2):
        rig.run(command)
    for _ in range(60):
        rig.agent.quit()
    rig.move()

    lines = b"".join(rig.guest.read(CONTROL_PORT, PAGE) for _ in range(3)).split(b"\n")
    while b"hello" not in lines:
        lines += rig.guest.read(CONTROL_PORT, PAGE).split(b"\n")

    assert [line.split(b" ")[0] for line in lines if line][-2:] == [b"abandon", b"hello"]
    assert lines.count(b"quit") == 60
