"""A command of QMP works in a program that has loaded no server of QMP."""

from __future__ import annotations

import subprocess
import sys


def test_commands_are_there_without_a_server() -> None:
    script = (
        "import asyncio, contextlib, types\n"
        "from minivmm.api import work\n"
        "engine = types.SimpleNamespace(\n"
        "    loop=types.SimpleNamespace(lock=contextlib.nullcontext()),\n"
        "    servers=types.SimpleNamespace(context=None))\n"
        "print(asyncio.run(work.query(engine, 'query-version', {}))['package'])\n"
    )

    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True)

    assert (done.returncode, done.stderr) == (0, "")
