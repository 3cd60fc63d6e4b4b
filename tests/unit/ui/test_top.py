"""The terminal view, driven by textual's pilot; and the verb on a terminal of its own."""

from __future__ import annotations

import asyncio
import os
import re
import sys
from collections.abc import Awaitable, Callable, Iterator

import pexpect
import pytest
from textual.pilot import Pilot

from minivmm.devices.virtio_mem.spec import VirtioMemSpec
from minivmm.runtime import MachineDir
from minivmm.testing.fake_machine import FakeMachine
from minivmm.ui.actions import Actions
from minivmm.ui.condensed import ASCII
from minivmm.ui.feed import Feed
from minivmm.ui.top import Top
from minivmm.units import GIB, MIB

Script = Callable[["Driver"], Awaitable[None]]


class Driver:
    """A person at the terminal."""

    def __init__(self, app: Top, pilot: Pilot[str]) -> None:
        self.app = app
        self.pilot = pilot

    @property
    def screen(self) -> str:
        """All that is to be seen, line by line."""
        strips = self.app.screen._compositor.render_strips()
        return "\n".join(strip.text.rstrip() for strip in strips)

    async def press(self, *keys: str) -> None:
        await self.pilot.press(*keys)

    async def see(self, *words: str) -> None:
        """Wait until all `words` are on the screen, wherever its lines end."""
        for _ in range(200):
            await self.pilot.pause(0.02)
            shown = self.screen
            if all(word in shown or word in " ".join(shown.split()) for word in words):
                return
        raise AssertionError(f"{words} did not come; there is:\n{self.screen}")


@pytest.fixture
def play(feed: Feed, live: MachineDir) -> Callable[..., str | None]:
    """Runs a script at a terminal of 80x24 (or another size); returns what the view ends with."""

    def run(script: Script, size: tuple[int, int] = (80, 24), **options: object) -> str | None:
        app = Top(feed, Actions(live), **options)  # type: ignore[arg-type]

        async def scene() -> None:
            async with app.run_test(size=size) as pilot:
                await script(Driver(app, pilot))

        asyncio.run(scene())
        return app.return_value

    return run


def test_the_view_fits_80_by_24(play: Callable[..., object], machine: FakeMachine) -> None:
    machine.memory_devices["vmem0"].set_requested_size(256 * MIB)

    async def script(at: Driver) -> None:
        await at.see("vm1", "running", "vmem0", "requested 256M", "plugged 256M", "of 1G")
        await at.see("PLUG 2 ACK", "driver up", "host 0")
        await at.see("vmem0 PLUG 64 blocks at 0x100000000 (128M): ACK; plugged 128M")
        assert "q quit" in at.screen.splitlines()[-1]
        assert len(at.screen.splitlines()) == 24
        assert max(map(len, at.screen.splitlines())) <= 80
        await at.see("▒" * 60)  # once the marks of what just moved are gone

    play(script)


def test_plus_and_minus_resize_by_a_sixteenth(
    play: Callable[..., object], machine: FakeMachine
) -> None:
    async def script(at: Driver) -> None:
        await at.see("vmem0")
        await at.press("plus")
        await at.see("vmem0: 64M requested", "plugged 64M", "+" * 5)
        await at.press("equals_sign", "plus")
        await at.see("plugged 192M")
        await at.press(*["minus"] * 4)
        await at.see("plugged 0")
        await at.press("r", *"960M", "enter")
        await at.see("plugged 960M")
        await at.press("plus", "plus")
        await at.see("plugged 1G")

    play(script)
    assert machine.memory_devices["vmem0"].plugged_size == GIB


def test_a_size_is_typed_at_the_prompt(play: Callable[..., object], machine: FakeMachine) -> None:
    async def script(at: Driver) -> None:
        await at.see("vmem0")
        await at.press("r", *"100M", "enter")
        await at.see("vmem0: 100M requested", "plugged 100M")
        await at.press("r", *"3M", "enter")
        await at.see("requested-size 3M is not a multiple of block-size 2M")
        await at.press("r", *"2G", "escape", "plus")
        await at.see("plugged 164M")

    play(script)


def test_pause_kick_why_and_help(play: Callable[..., object], machine: FakeMachine) -> None:
    async def script(at: Driver) -> None:
        await at.see("running")
        await at.press("p")
        await at.see(" paused")
        await at.press("p")
        await at.see(" running")
        await at.press("k")
        await at.see("vmem0: configuration interrupt sent")
        await at.press("w")
        await at.see("vmem0: done", "as requested")
        await at.press("x", "question_mark")
        await at.see("quit; the VM runs on", "beyond the usable region")
        await at.press("x", "e")
        await at.see("cannot be followed")

    play(script)
    assert machine.state == "running"


def test_q_quits_and_the_vm_runs_on(play: Callable[..., object], machine: FakeMachine) -> None:
    async def script(at: Driver) -> None:
        await at.see("vmem0")
        await at.press("q")

    assert play(script) is None
    assert machine.state == "running"


def test_the_end_of_the_vm_ends_the_view(play: Callable[..., object], machine: FakeMachine) -> None:
    async def script(at: Driver) -> None:
        await at.see("vmem0")
        with machine.lock:
            machine.request_quit()
        for _ in range(100):
            await at.pilot.pause(0.05)
            if at.app.return_value is not None:
                return

    assert play(script) == "the VM has ended"


@pytest.mark.parametrize("size", [(40, 12), (20, 6), (200, 60)])
def test_other_sizes_of_terminal(play: Callable[..., object], size: tuple[int, int]) -> None:
    async def script(at: Driver) -> None:
        await at.see("vmem0")
        await at.pilot.resize_terminal(80, 24)
        await at.see("vmem0", "q quit")

    play(script, size=size)


def test_a_terminal_without_utf8(play: Callable[..., object], machine: FakeMachine) -> None:
    machine.memory_devices["vmem0"].set_requested_size(512 * MIB)

    async def script(at: Driver) -> None:
        await at.see("|" + "O" * 70)
        assert "." * 70 in at.screen

    play(script, glyphs=ASCII)


class TestSeveralDevices:
    @pytest.fixture
    def machine(self) -> FakeMachine:
        return FakeMachine("vm1", [VirtioMemSpec(id=f"vmem{n}", size=GIB) for n in range(6)])

    def test_keys_act_on_the_chosen_one(
        self, play: Callable[..., object], machine: FakeMachine
    ) -> None:
        async def script(at: Driver) -> None:
            await at.see(">vmem0")
            await at.press("tab", "plus")
            await at.see(">vmem1", "vmem1: 64M requested")
            await at.press("shift+tab", "shift+tab")
            await at.see(">vmem5")  # which was below the screen
            await at.press("plus")
            await at.see("vmem5: 64M requested")

        play(script)
        sizes = [device.plugged_size // MIB for device in machine.memory_devices.values()]
        assert sizes == [0, 64, 0, 0, 0, 64]


class TestNoDevice:
    @pytest.fixture
    def machine(self) -> FakeMachine:
        return FakeMachine("vm1")

    def test_a_vm_without_memory_devices(self, play: Callable[..., object]) -> None:
        async def script(at: Driver) -> None:
            await at.see("no memory device: boot it with --mem-device")
            await at.press("plus", "minus", "r", "k", "w", "tab")
            await at.see("no memory device")

        play(script)


# -- the verb --------------------------------------------------------------------------------------

COLOUR = re.compile(r"\x1b\[[0-9;]*\b([34][0-7]|[34]8;[25][0-9;]*|(9|10)[0-7])\b[0-9;]*m")


@pytest.fixture
def terminal(live: MachineDir) -> Iterator[Callable[..., pexpect.spawn[str]]]:
    """`minivmm top` on a pseudo terminal."""
    spawned: list[pexpect.spawn[str]] = []

    def start(*words: str, **env: str) -> pexpect.spawn[str]:
        words = ("-m", "minivmm", "top", *words)
        given = {**os.environ, "TERM": "xterm-256color", "LC_ALL": "C.UTF-8", **env}
        given.pop("NO_COLOR", None) if "NO_COLOR" not in env else None
        child = pexpect.spawn(
            sys.executable, list(words), env=given, dimensions=(24, 80), timeout=20, encoding="utf8"
        )
        spawned.append(child)
        return child

    yield start
    for child in spawned:
        child.close(force=True)


def watched(top: pexpect.spawn[str]) -> str:
    """What it shows until the first view is there."""
    shown = ""
    for words in ("q quit", "vmem0", "driver up"):
        top.expect(words)
        shown += top.before or ""
    return shown


def test_top_on_a_terminal(terminal: Callable[..., pexpect.spawn[str]]) -> None:
    top = terminal("vm1")
    shown = watched(top)
    top.send("q")
    top.expect(pexpect.EOF)

    assert top.wait() == 0
    assert COLOUR.search(shown + (top.before or ""))


@pytest.mark.parametrize(("words", "env"), [(["--no-color"], {}), ([], {"NO_COLOR": "1"})])
def test_top_without_colour(
    terminal: Callable[..., pexpect.spawn[str]], words: list[str], env: dict[str, str]
) -> None:
    top = terminal(*words, **env)
    shown = watched(top)
    top.send("q")
    top.expect(pexpect.EOF)

    assert not COLOUR.search(shown)


def test_top_ends_with_the_vm(
    terminal: Callable[..., pexpect.spawn[str]], machine: FakeMachine
) -> None:
    top = terminal()
    watched(top)
    with machine.lock:
        machine.request_quit()
    top.expect("minivmm: vm1: the VM has ended")
    top.expect(pexpect.EOF)

    assert top.wait() == 0


@pytest.mark.usefixtures("live")
def test_top_without_textual_names_the_remedy() -> None:
    script = (
        "import sys; sys.modules['textual'] = None; from minivmm.cli.main import run;"
        " sys.exit(run(['top']))"
    )
    child = pexpect.spawn(sys.executable, ["-c", script], timeout=20, encoding="utf8")
    child.expect(r"top needs the Python package textual: pip install 'minivmm\[tui\]'")
    child.expect(pexpect.EOF)

    assert child.wait() == 1


@pytest.mark.usefixtures("live")
def test_top_wants_a_terminal(terminal: Callable[..., pexpect.spawn[str]]) -> None:
    dumb = terminal(TERM="dumb")
    dumb.expect("top needs a terminal")
    dumb.expect(pexpect.EOF)

    assert dumb.wait() == 2
