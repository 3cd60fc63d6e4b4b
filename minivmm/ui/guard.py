"""Who may see and steer a VM by HTTP: holders of the token, under a name that is really ours.

The token is in the URL, so whoever has the URL may. A page of another site cannot read it, but its
DNS name might be made to point here (DNS rebinding): hence names in Host are checked as well.
"""

from __future__ import annotations

import hmac
import ipaddress
import secrets
import socket
from collections.abc import Mapping
from dataclasses import dataclass

from minivmm.errors import UsageError

DEFAULT_HOST = "127.0.0.1"
_ALL = ("0.0.0.0", "::")


@dataclass(frozen=True)
class Listen:
    """Where to listen; port 0 stands for any free one."""

    host: str = DEFAULT_HOST
    port: int = 0

    @property
    def loopback(self) -> bool:
        """Can only this host's own processes reach it?"""
        try:
            return ipaddress.ip_address(self.host).is_loopback
        except ValueError:
            return self.host == "localhost"

    def url(self, port: int, token: str) -> str:
        """The page's address, once the port is known."""
        host = socket.gethostname() if self.host in _ALL else self.host
        return f"http://{f'[{host}]' if ':' in host else host}:{port}/{token}/"


def parse_listen(text: str) -> Listen:
    """`8000`, `ADDR`, `ADDR:8000`, `[::1]:8000`; empty is the default. Raises UsageError."""
    host, colon, port = text.rpartition(":")
    if text.startswith("["):
        host, _, rest = text[1:].partition("]")
        colon, port = rest[:1], rest[1:]
        if (rest and colon != ":") or "]" not in text:
            raise _not_an_address(text)
    elif text.isdecimal():
        host, colon, port = "", ":", text
    elif not colon:
        host, port = text, ""
    elif ":" in host:
        raise _not_an_address(text)
    if (port and not port.isdecimal()) or (colon and not port) or int(port or 0) > 65535:
        raise _not_an_address(text)
    return Listen(host or DEFAULT_HOST, int(port or 0))


def new_token() -> str:
    """192 random bits, fit for a URL."""
    return secrets.token_urlsafe(24)


class Guard:
    """Judges requests to a server that was told to listen at `listen`."""

    def __init__(self, listen: Listen, token: str) -> None:
        self._names = {"localhost", listen.host.lower(), socket.gethostname().lower()}
        self._token = token.encode()

    def knows(self, token: str) -> bool:
        """Is it ours? Takes as long for wrong ones, however much of them is right."""
        return hmac.compare_digest(self._token, token.encode("utf-8", "replace"))

    def refusal(self, headers: Mapping[str, str]) -> str | None:
        """Why a request with these headers is not for us, if so: Host, and Origin if there is one.

        Addresses are fine, since what a rebound name cannot be is a number; the port is not looked
        at, as an SSH tunnel may have another one.
        """
        host = headers.get("Host", "")
        if not self._ours(host):
            return f"this is not {host or 'a server without a name'}"
        origin = headers.get("Origin")
        if origin is not None and origin != f"http://{host}":
            return f"pages of {origin} have no business here"
        return None

    def _ours(self, host: str) -> bool:
        name = host.lower()
        name = name[1:].partition("]")[0] if name.startswith("[") else name.partition(":")[0]
        if name in self._names:
            return True
        try:
            ipaddress.ip_address(name)
        except ValueError:
            return False
        return True


def _not_an_address(text: str) -> UsageError:
    return UsageError(
        f"listen address {text!r} is not understood (examples: 8000, 127.0.0.1:8000, [::1]:8000)"
    )
