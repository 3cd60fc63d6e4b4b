"""PyPI's qmp-shell drives a running guest."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

from harness import Guest

GIB = 1 << 30


def test_qmp_shell_grows_the_guest(guest: Guest) -> None:
    shell = str(Path(sys.executable).with_name("qmp-shell"))
    commands = [
        f"qom-set path=vmem0 property=requested-size value={GIB}",
        "query-memory-devices",
    ]

    asked = subprocess.run(
        [shell, str(guest.directory.qmp_socket)],
        input="\n".join(commands) + "\n",
        capture_output=True,
        text=True,
        timeout=120,
    )
    guest.wait_until(lambda: guest.device()["size"] == GIB, "1 GiB plugged")
    devices = guest.qmp.execute("query-memory-devices")

    assert "error" not in asked.stdout, asked.stdout
    assert f'"requested-size": {GIB}' in asked.stdout.replace("'", '"')
    assert devices[0]["type"] == "virtio-mem"
    assert devices[0]["data"]["size"] == GIB
    summary = guest.qmp.execute("query-memory-size-summary")
    assert summary == {"base-memory": 512 << 20, "plugged-memory": GIB}
    guest.resize(0)
