"""URIs of migrations, and the connections that they name."""

from __future__ import annotations

import shutil
import socket
from pathlib import Path
from typing import Any

import pytest

from minivmm.errors import HostError, MinivmmError, UsageError
from minivmm.migration.transport import Address, Listener, connect, parse_uri

CREDS = Path(__file__).parent / "creds"
"""Keys that guard nothing, certificates good until 2126, as docs/migration.md makes them."""


@pytest.mark.parametrize(
    ("text", "meant"),
    [
        ("unix:/run/m.sock", Address("unix", path="/run/m.sock")),
        ("unix:a,b", Address("unix", path="a,b")),
        ("tcp:localhost:4444", Address("tcp", host="localhost", port=4444)),
        ("tcp:[::1]:4444", Address("tcp", host="::1", port=4444)),
        ("exec:ssh host socat - UNIX:/m", Address("exec", path="ssh host socat - UNIX:/m")),
        (
            "tls:far.example:1,creds=/c,hostname=near",
            Address("tls", host="far.example", port=1, creds=Path("/c"), hostname="near"),
        ),
    ],
)
def test_uris_are_understood(text: str, meant: Address) -> None:
    assert parse_uri(text) == meant


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("", "not understood"),
        ("/run/m.sock", "not understood"),
        ("unix:", "not understood"),
        ("exec:", "not understood"),
        ("rdma:host:1", "not understood"),
        ("tcp:host", "names no HOST:PORT"),
        ("tcp:host:70000", "names no HOST:PORT"),
        ("tcp:::1:44", "names no HOST:PORT"),
        ("tcp:localhost:1,creds=/c", "has no option 'creds'"),
        ("tls:localhost:1", "needs creds=DIR"),
        ("tls:localhost:1,creds=", "needs creds=DIR"),
        ("tls:localhost:1,creds=/c,cred=/d", "has no option 'cred'"),
    ],
)
def test_what_is_no_uri_is_said(text: str, said: str) -> None:
    with pytest.raises(UsageError, match=said) as caught:
        parse_uri(text)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("host", ["0.0.0.0", "[::]", "192.0.2.1"])
def test_memory_does_not_leave_the_host_in_the_clear(host: str) -> None:
    address = parse_uri(f"tcp:{host}:4444")
    for open_it in (Listener, connect):
        with pytest.raises(UsageError, match="in the clear"):
            open_it(address)  # type: ignore[operator]


@pytest.mark.parametrize(
    "form",
    [
        "tcp:127.0.0.1:0",
        "tcp:[::1]:0",
        f"tls:127.0.0.1:0,creds={CREDS}",
    ],
)
def test_a_machine_moves_by_any_of_them(source: Any, target: Any, wait: Any, form: str) -> None:
    place = target.expect(form)

    source.go(place + (f",creds={CREDS}" if "creds" in form else ""))
    wait(lambda: source.migration.progress.over and target.ends)

    assert target.ends == [None], target.ends
    assert target.memory() == source.memory()


def test_a_machine_moves_through_a_command(
    source: Any, target: Any, wait: Any, tmp_path: Path
) -> None:
    """Both ends are commands here, with a socket between them, as ssh has one."""
    middle = socket.socket(socket.AF_UNIX)
    middle.bind(str(tmp_path / "middle"))
    middle.listen(2)
    helper = tmp_path / "helper.py"
    helper.write_text(HELPER)
    target.expect(f"exec:python3 {helper} {tmp_path}/middle")
    there, _ = middle.accept()
    source.go(f"exec:python3 {helper} {tmp_path}/middle")
    here, _ = middle.accept()
    with middle, there, here:
        relay = Both(there, here)
        wait(lambda: source.migration.progress.over and target.ends, 20.0)
        relay.join()

    assert target.ends == [None], target.ends
    assert target.memory() == source.memory()


HELPER = """
import os, socket, sys, threading
link = socket.socket(socket.AF_UNIX)
link.connect(sys.argv[1])
def come():
    while data := link.recv(1 << 16):
        while data:
            data = data[os.write(1, data):]
    os._exit(0)
threading.Thread(target=come).start()
while data := os.read(0, 1 << 16):
    link.sendall(data)
link.shutdown(socket.SHUT_WR)
"""


class Both:
    """Passes bytes between two sockets."""

    def __init__(self, one: socket.socket, other: socket.socket) -> None:
        import threading

        self._threads = [
            threading.Thread(target=self._pass, args=ends) for ends in ((one, other), (other, one))
        ]
        for thread in self._threads:
            thread.start()

    def join(self) -> None:
        for thread in self._threads:
            thread.join(10)

    @staticmethod
    def _pass(come: socket.socket, go: socket.socket) -> None:
        try:
            while data := come.recv(1 << 16):
                go.sendall(data)
            go.shutdown(socket.SHUT_WR)
        except OSError:
            pass


def test_a_command_that_fails_fails_the_migration(source: Any, wait: Any) -> None:
    source.go("exec:exit 3")
    wait(lambda: source.migration.progress.over)

    assert "no target of a migration" in source.migration.progress.error
    assert source.runs()


def creds(directory: Path, *, side: str, cert: str = "") -> Path:
    """A directory like CREDS, in which `side` shows the certificate `cert`."""
    directory.mkdir()
    for file in CREDS.glob("*.pem"):
        shutil.copy(file, directory)
    for kind in ("cert", "key"):
        shutil.copy(CREDS / f"{cert or side}-{kind}.pem", directory / f"{side}-{kind}.pem")
    return directory


@pytest.mark.parametrize("side", ["server", "client"])
def test_a_stranger_is_not_let_in(
    source: Any, target: Any, wait: Any, tmp_path: Path, side: str
) -> None:
    """Each side shows a certificate that the other's CA has signed, or it is over at once."""
    forged = creds(tmp_path / "forged", side=side, cert="stranger")
    ours, theirs = (CREDS, forged) if side == "server" else (forged, CREDS)

    place = target.expect(f"tls:127.0.0.1:0,creds={theirs}")
    source.go(f"{place},creds={ours}")
    wait(lambda: source.migration.progress.over and target.ends)

    assert target.ends[0] is not None
    assert source.statuses() == ["setup", "failed"]
    for said in (str(target.ends[0]), source.migration.progress.error):
        assert said and "\n" not in said
    if side == "server":
        assert "the target shows no good certificate" in source.migration.progress.error
    else:
        assert "the source shows no good certificate" in str(target.ends[0])
    assert source.runs()


def test_the_certificate_must_be_the_targets(source: Any, target: Any, wait: Any) -> None:
    place = target.expect(f"tls:127.0.0.1:0,creds={CREDS}")
    source.go(f"{place},creds={CREDS},hostname=elsewhere.example")
    wait(lambda: source.migration.progress.over and target.ends)

    assert "certificate" in source.migration.progress.error
    assert source.runs()


def test_its_name_may_be_another_than_the_host(source: Any, target: Any, wait: Any) -> None:
    place = target.expect(f"tls:127.0.0.1:0,creds={CREDS}")
    source.go(f"{place},creds={CREDS},hostname=target.example")
    wait(lambda: source.migration.progress.over and target.ends)

    assert target.ends == [None]


def test_who_speaks_no_tls_is_not_let_in(source: Any, target: Any, wait: Any) -> None:
    place = target.expect(f"tls:127.0.0.1:0,creds={CREDS}")
    source.go(place.replace("tls:", "tcp:"))
    wait(lambda: source.migration.progress.over and target.ends)

    assert "the source shows no good certificate" in str(target.ends[0])
    assert source.runs()


def test_missing_files_are_named(target: Any, tmp_path: Path) -> None:
    with pytest.raises(HostError, match=r"ca-cert\.pem is missing"):
        target.expect(f"tls:127.0.0.1:0,creds={tmp_path}")
    broken = creds(tmp_path / "broken", side="server")
    (broken / "server-key.pem").write_text("nonsense")
    with pytest.raises(HostError, match="cannot be used"):
        target.expect(f"tls:127.0.0.1:0,creds={broken}")
    assert target.machine.state == "prelaunch"


def test_a_target_leaves_no_socket(world: Any, target: Any, tmp_path: Path) -> None:
    place = tmp_path / "m"
    target.expect(f"unix:{place}")
    assert place.stat().st_mode & 0o777 == 0o600

    world.drop(target)

    assert not place.exists()


def test_a_place_that_is_taken_is_said(world: Any, target: Any, tmp_path: Path) -> None:
    target.expect(f"unix:{tmp_path}/m")
    with pytest.raises(MinivmmError, match="in use"):
        world.party(empty=True).expect(f"unix:{tmp_path}/m")
    with pytest.raises(HostError, match="cannot listen"):
        world.party(empty=True).expect(f"unix:{tmp_path}/{'x' * 120}")
