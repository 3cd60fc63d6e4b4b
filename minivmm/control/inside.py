"""Asks the guest's agent for facts on memory devices, in bounded time and amount.

For the command line, which should start fast: no asyncio and no construct are imported here. What
the guest says is not understood here but by the VM (facts.py).
"""

from __future__ import annotations

import contextlib
import os
import select
import threading
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import minivmm.guest
from minivmm.control import exec_client
from minivmm.control.client import Client
from minivmm.errors import MinivmmError

MOST = 64 * 1024
"""Bytes that are taken; the script tells less than 1 KiB of a device."""


def inside_command(devices: Sequence[Mapping[str, Any]]) -> list[str]:
    """The command that tells, in the guest, of `devices` (of x-minivmm-why's answer)."""
    words = [
        str(device[key])
        for device in devices
        for key in ("id", "pci-address", "memaddr", "max-size")
    ]
    script = (Path(minivmm.guest.__file__).parent / "inside.sh").read_text()
    return ["sh", "-c", script, "inside", *words]


def look_inside(path: Path, devices: Sequence[Mapping[str, Any]], seconds: float) -> str:
    """What guest/inside.sh says of `devices` (of x-minivmm-why's answer), by exec socket `path`.

    If it fails, one line that says why; cut off after `seconds`, or if it says too much.
    """
    reading, writing = os.pipe()
    # A thread, since the command may never end; once nobody reads, its next output ends it.
    threading.Thread(
        target=_run, args=(path, inside_command(devices), writing), daemon=True
    ).start()
    try:
        return _read(reading, time.monotonic() + seconds).decode(errors="replace")
    finally:
        os.close(reading)


def diagnoses(
    client: Client, agent: Path | None, device: str | None = None, *, patience: float
) -> list[dict[str, Any]]:
    """The diagnosis of each device as x-minivmm-why gives it, or of one.

    By way of exec socket `agent` the guest is asked as well, if it is ready, for at most `patience`
    seconds.
    """
    which = {} if device is None else {"id": device}
    answer = client.execute("x-minivmm-why", **which)
    if agent is not None and answer["agent-ready"]:
        inside = look_inside(agent, answer["memory-devices"], patience)
        answer = client.execute("x-minivmm-why", inside=inside, **which)
    devices: list[dict[str, Any]] = answer["memory-devices"]
    return devices


def _run(path: Path, argv: Sequence[str], writing: int) -> None:
    with contextlib.suppress(OSError), os.fdopen(writing, "wb", buffering=0) as text:
        try:
            exec_client.run(path, argv, stdin=None, stdout=writing, stderr=writing, timeout=0.0)
        except MinivmmError as error:
            text.write(f"{error}\n".encode())


def _read(reading: int, deadline: float) -> bytes:
    data = bytearray()
    while len(data) < MOST:
        left = deadline - time.monotonic()
        if left <= 0 or not select.select([reading], [], [], left)[0]:
            break
        chunk = os.read(reading, MOST)
        if not chunk:
            break
        data += chunk
    return bytes(data)
