"""What clients and server of the exec socket tell each other: OPEN and CREDIT payloads.

Imported by the client, which has to start fast: no asyncio and no construct here.
"""

from __future__ import annotations

import json
import struct
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field

CREDIT = struct.Struct("<BI")
"""Payload of a CREDIT frame: the kind of the frames that may follow, and how many bytes of them."""


@dataclass(frozen=True)
class ExecRequest:
    """A command for the guest; strings stand for bytes by way of surrogateescape."""

    argv: Sequence[str]
    env: Mapping[str, str] = field(default_factory=dict)
    """Variables added to the agent's environment."""
    cwd: str | None = None
    """Working directory; "/" if None."""
    stdin: bool = False
    """Whether STDIN frames will come; /dev/null otherwise."""
    timeout: float | None = None
    """Seconds to wait for the guest agent; None waits forever."""

    def encode(self) -> bytes:
        """The JSON payload; pure ASCII, so that lone surrogates survive."""
        return json.dumps(asdict(self)).encode("ascii")

    @classmethod
    def decode(cls, payload: bytes) -> ExecRequest:
        """The request in `payload`. Raises ValueError if it is not one; missing keys are fine."""
        value = json.loads(payload)
        if not isinstance(value, dict):
            raise ValueError("OPEN takes a JSON object")
        unknown = value.keys() - cls.__dataclass_fields__.keys()
        if unknown or "argv" not in value:
            raise ValueError(f"OPEN needs argv, and does not know {sorted(unknown)}")
        request = cls(**value)
        request._check()
        return request

    def _check(self) -> None:
        if not isinstance(self.argv, list) or not all(isinstance(a, str) for a in self.argv):
            raise ValueError("argv must be a list of strings")
        if not isinstance(self.env, dict) or not all(
            isinstance(value, str) for value in self.env.values()
        ):
            raise ValueError("env must be an object of strings")
        if not isinstance(self.cwd, str | None):
            raise ValueError("cwd must be a string or null")
        if not isinstance(self.stdin, bool):
            raise ValueError("stdin must be a boolean")
        if isinstance(self.timeout, bool) or not isinstance(self.timeout, int | float | None):
            raise ValueError("timeout must be a number of seconds or null")
