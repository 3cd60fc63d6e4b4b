"""The live view from end to end: a real guest in a lab, its page in a browser on this host."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import time
from pathlib import Path

import pexpect
import pytest

from minivmm.lab.lab import MARK
from minivmm.testing.browser import Browser
from minivmm.units import GIB, MIB

pytestmark = [
    pytest.mark.lab,
    pytest.mark.timeout(300),
    pytest.mark.skipif(MARK in os.environ, reason="this is the lab"),
]

MINIVMM = [sys.executable, "-m", "minivmm"]
BLOCK = 2 * MIB
DEVICE = "virtio-mem-pci,id=vmem0,size=1G,block-size=2M,requested-size=0"


def minivmm(*words: str) -> str:
    return subprocess.run([*MINIVMM, *words], capture_output=True, check=True, text=True).stdout


def page_of(said: Path, vm: subprocess.Popen[bytes]) -> str:
    """The address that `boot --ui` says."""
    deadline = time.monotonic() + 120
    while True:
        found = re.search(r"live view of box: (http://\S+)", said.read_text(errors="replace"))
        if found:
            return found.group(1)
        assert vm.poll() is None and time.monotonic() < deadline, said.read_text(errors="replace")
        time.sleep(0.1)


def log(page: Browser) -> str:
    return page.find("#lines").text


def total_memory() -> int:
    """MemTotal of the guest, in bytes."""
    text = minivmm("exec", "box", "--timeout", "120s", "--", "grep", "MemTotal", "/proc/meminfo")
    return int(text.split()[1]) * 1024


def test_the_slider_moves_and_the_guests_plugged_size_follows(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MINIVMM_RUNTIME_DIR", str(tmp_path / "run"))
    said = tmp_path / "said"
    words = [*MINIVMM, "boot", "--accel", "lab", "-n", "box", "--device", DEVICE, "--ui"]
    with (
        said.open("wb") as output,
        Browser(tmp_path / "chromium") as page,
        subprocess.Popen(
            words, stdin=subprocess.DEVNULL, stdout=output, stderr=subprocess.STDOUT
        ) as vm,
    ):
        try:
            page.open(page_of(said, vm))
            page.wait(lambda: "Linux" in page.find("#facts").text, "the guest's agent", 120)
            assert page.field("vmem0", "driver").text == "driver up"
            small = total_memory()

            wanted = page.drag_slider("vmem0", 0.6) * BLOCK
            page.wait(lambda: page.size("vmem0", "size") == wanted, "the plugged size", 60)

            assert abs(wanted - 0.6 * GIB) < 0.05 * GIB
            assert total_memory() - small > 0.9 * wanted
            info = json.loads(minivmm("info", "box", "--json"))["memory-devices"][0]
            assert (info["requested-size"], info["size"]) == (wanted, wanted)
            page.wait(lambda: ": ACK; plugged" in log(page), "the decoded requests")
            queues = page.field("vmem0", "queues").text.splitlines()
            assert re.match(r"0 (split|packed) \d+ ", queues[-1])
            held = page.field("vmem0", "resident")
            page.wait(lambda: held.text not in ("?", "0"), "the host memory that the guest uses")

            top = pexpect.spawn(sys.executable, ["-m", "minivmm", "top", "box"], timeout=60)
            top.expect(r"vmem0.*driver up")
            top.send("q")
            top.expect(pexpect.EOF)
            assert top.wait() == 0

            page.press("#steps")
            page.wait(lambda: "every step is shown" in page.find("#notice").text, "the steps")
            page.drag_slider("vmem0", 0.0)
            page.wait(lambda: page.size("vmem0", "size") == 0, "the plugged size", 60)
            page.wait(lambda: re.search(r"vmem0 interrupt #\d+ queue 0", log(page)), "the steps")
            assert total_memory() == small

            minivmm("stop", "box")
            page.wait(lambda: page.find("#status").text == "ended", "the end of the VM", 30)
            assert vm.wait(20) == 0
            assert page.complaints() == []
        finally:
            vm.terminate()
