"""URIs of migrations, and the connections that they name: connect to a target, wait for a source.

unix:PATH                          a socket that only its owner can open
tcp:HOST:PORT                      on this host only: guest memory does not leave it in the clear
tls:HOST:PORT,creds=DIR            encrypted, both sides show certificates (tls.py)
exec:COMMAND                       standard input and output of a shell command: ssh, for example
"""

from __future__ import annotations

import contextlib
import ipaddress
import re
import socket
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from minivmm.closing import Closing
from minivmm.errors import HostError, MigrationError, UsageError
from minivmm.migration import tls, wire
from minivmm.migration.channel import PATIENCE, Channel
from minivmm.unix_socket import listen as listen_unix

_HOST_PORT = re.compile(r"(?:\[([^\]]+)\]|([^:\[\]]+)):([0-9]{1,5})")
_EXAMPLES = "unix:PATH, tcp:HOST:PORT, tls:HOST:PORT,creds=DIR or exec:COMMAND"


@dataclass(frozen=True)
class Address:
    """A URI, understood: `scheme`, and what of the rest belongs to it."""

    scheme: str
    path: str = ""
    """unix: the socket; exec: the command."""
    host: str = ""
    port: int = 0
    creds: Path | None = None
    """tls: the directory with certificates and keys."""
    hostname: str = ""
    """tls: the name in the target's certificate, if it is not `host`."""


def parse_uri(text: str) -> Address:
    """Raises UsageError."""
    scheme, colon, rest = text.partition(":")
    if scheme in ("unix", "exec") and rest:
        return Address(scheme, path=rest)
    if scheme not in ("tcp", "tls") or not colon:
        raise UsageError(f"migration URI {text!r} is not understood: use {_EXAMPLES}")
    place, *words = rest.split(",")
    found = _HOST_PORT.fullmatch(place)
    if found is None or int(found[3]) > 65535:
        raise UsageError(f"migration URI {text!r} names no HOST:PORT: use {_EXAMPLES}")
    options = dict(word.partition("=")[::2] for word in words)
    known = {"creds", "hostname"} if scheme == "tls" else set()
    for key in options.keys() - known:
        keys = f" ({', '.join(sorted(known))})" if known else ": tls: has creds= and hostname="
        raise UsageError(f"migration URI {text!r}: {scheme}: has no option {key!r}{keys}")
    host = found[1] or found[2]
    if scheme == "tcp":
        return Address("tcp", host=host, port=int(found[3]))
    if not options.get("creds"):
        raise UsageError(f"migration URI {text!r} needs creds=DIR (docs/migration.md)")
    creds = Path(options["creds"]).absolute()
    return Address(
        "tls", host=host, port=int(found[3]), creds=creds, hostname=options.get("hostname", "")
    )


def connect(address: Address) -> Channel:
    """A source's channel to its target. Raises MigrationError or HostError."""
    if address.scheme == "exec":
        return _execute(address, wire.SOURCE)
    link = _connect(address)
    if address.creds is not None:
        link = tls.wrap_client(link, address.creds, address.hostname or address.host)
    return Channel(link, wire.SOURCE)


class Listener(Closing):
    """Waits for one source at `address`. Raises HostError if it cannot be listened there."""

    def __init__(self, address: Address) -> None:
        self._address = address
        self._socket: socket.socket | None = None
        self._context = tls.server_context(address.creds) if address.creds else None
        if address.scheme == "unix":
            self._socket = listen_unix(Path(address.path))
            self._socket.listen(1)
        elif address.scheme != "exec":
            self._socket = _bind(address)

    @property
    def place(self) -> str:
        """The URI that a source on this host may use; a port of 0 has become a real one."""
        address = self._address
        if address.scheme in ("unix", "exec") or self._socket is None:
            return f"{address.scheme}:{address.path}"
        host = f"[{address.host}]" if ":" in address.host else address.host
        return f"{address.scheme}:{host}:{self._socket.getsockname()[1]}"

    def accept(self) -> Channel:
        """The channel to the source that came; nobody else can come. Raises MigrationError."""
        if self._socket is None:
            return _execute(self._address, wire.TARGET)
        try:
            link, _ = self._socket.accept()
        except OSError as error:
            raise MigrationError(f"no source can come any more: {error.strerror}") from None
        self.close()
        if link.family != socket.AF_UNIX:
            _notice_dead_links(link)
        if self._context is not None:
            link = tls.wrap_server(link, self._context)
        return Channel(link, wire.TARGET)

    def abort(self) -> None:
        """Have `accept` fail; from any thread."""
        if self._socket is not None:
            with contextlib.suppress(OSError):
                self._socket.shutdown(socket.SHUT_RDWR)

    def close(self) -> None:
        """Listen no more; harmless when repeated."""
        if self._socket is None or self._socket.fileno() < 0:
            return
        self._socket.close()
        if self._address.scheme == "unix":
            Path(self._address.path).unlink(missing_ok=True)


def _connect(address: Address) -> socket.socket:
    """A socket that is connected. Raises MigrationError or HostError."""
    failure: OSError | None = None
    for family, kind, protocol, where in _resolve(address):
        link = socket.socket(family, kind, protocol)
        link.settimeout(PATIENCE)
        try:
            link.connect(where)
        except OSError as error:
            link.close()
            failure = error
        else:
            if family != socket.AF_UNIX:
                _notice_dead_links(link)
            return link
    raise MigrationError(f"no target listens at {_said(address)}: {_why(failure)}")


def _bind(address: Address) -> socket.socket:
    """A socket that listens. Raises HostError."""
    failure: OSError | None = None
    for family, kind, protocol, where in _resolve(address):
        listener = socket.socket(family, kind, protocol)
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            listener.bind(where)
            listener.listen(1)
        except OSError as error:
            listener.close()
            failure = error
        else:
            return listener
    raise HostError(f"cannot listen on {_said(address)}: {_why(failure)}")


def _said(address: Address) -> str:
    return address.path or f"{address.host}, port {address.port}"


def _why(failure: OSError | None) -> str:
    """Too long a path has no errno."""
    return "it has no address" if failure is None else failure.strerror or str(failure)


def _resolve(address: Address) -> Iterator[tuple[int, int, int, Any]]:
    """What a socket needs for each address that is meant; of this host only unless encrypted."""
    if address.scheme == "unix":
        yield socket.AF_UNIX, socket.SOCK_STREAM, 0, address.path
        return
    try:
        found = socket.getaddrinfo(address.host, address.port, type=socket.SOCK_STREAM)
    except OSError as error:
        raise HostError(f"host {address.host!r} is not known: {error.strerror}") from None
    for family, kind, protocol, _, where in found:
        if address.creds is None and not ipaddress.ip_address(where[0]).is_loopback:
            raise UsageError(
                f"tcp:{address.host} would carry the guest's memory in the clear over the network:"
                " use tls:, or ssh (docs/migration.md)"
            )
        yield family, kind, protocol, where


def _notice_dead_links(link: socket.socket) -> None:
    """A link that is cut says nothing; the system is to ask for it after 10 s, and every 5 s."""
    link.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    link.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    link.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPIDLE, 10)
    link.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPINTVL, 5)
    link.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPCNT, 4)


def _execute(address: Address, role: int) -> Channel:
    ours, theirs = socket.socketpair()
    with theirs:
        try:
            helper = subprocess.Popen(
                ["/bin/sh", "-c", address.path],
                stdin=theirs.fileno(),
                stdout=theirs.fileno(),
                start_new_session=True,  # Ctrl-C is for the VM
            )
        except OSError as error:
            ours.close()
            raise HostError(f"cannot run {address.path!r}: {error.strerror}") from None
    return Channel(ours, role, helper)
