"""guest/memory_events.sh on the host, with a `uevent` that plays the kernel."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

import pytest

import minivmm.guest

SCRIPT = Path(minivmm.guest.__file__).parent / "memory_events.sh"
UEVENT = """#!/bin/sh
ACTION=add DEVPATH=/devices/system/memory/memory32 SUBSYSTEM=memory "$@"
ACTION=add DEVPATH=/devices/pci0000:00/0000:00:03.0 SUBSYSTEM=pci "$@"
ACTION=online DEVPATH=/devices/system/memory/memory32 SUBSYSTEM=memory "$@"
"""


@pytest.mark.parametrize("shell", [["sh"], ["busybox", "sh"]], ids=["dash", "busybox"])
def test_memory_blocks_are_told_and_nothing_else(shell: list[str], tmp_path: Path) -> None:
    memory = tmp_path / "devices/system/memory"
    memory.mkdir(parents=True)
    (memory / "block_size_bytes").write_text("8000000\n")
    uevent = tmp_path / "uevent"
    uevent.write_text(UEVENT)
    uevent.chmod(0o755)
    script = SCRIPT.read_text()

    done = subprocess.run(
        [*shell, "-c", script, "memory_events", script],
        env=os.environ | {"MINIVMM_UEVENT": str(uevent), "MINIVMM_SYS": str(tmp_path)},
        capture_output=True,
        check=True,
        text=True,
    )

    assert done.stdout == "block 8000000\nadd 32\nonline 32\n"
    assert done.stderr == ""


def test_busybox_has_uevent() -> None:
    listed = subprocess.run(["busybox", "--list"], capture_output=True, check=True, text=True)

    assert "uevent" in listed.stdout.split()
