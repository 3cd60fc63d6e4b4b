"""The terminal view: `minivmm top`, made with textual. What is drawn is panel.py's."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any, ClassVar

from rich.text import Text
from textual.app import App, ComposeResult
from textual.binding import Binding, BindingType
from textual.containers import VerticalScroll
from textual.screen import ModalScreen
from textual.widgets import Input, RichLog, Static

from minivmm.errors import MinivmmError
from minivmm.ui.actions import Actions
from minivmm.ui.condensed import GLYPHS, Look
from minivmm.ui.eventlog import Line
from minivmm.ui.feed import Feed, State
from minivmm.ui.panel import STYLES, device_text, header

LOOK = 0.1
"""Seconds between two looks at the feed."""

STEPS = 16
"""How many presses of + fill a region."""

STALE = 1.0
"""Seconds for which a size that a key asked for counts more than what the views show."""

LOG = 6
"""Least lines of the event log."""

DEVICE = 4
"""Least lines of a device: sizes, map, counters, state."""

NO_DEVICE = "this VM has no memory device: boot it with --mem-device size=4G"

KEYS = "+ grow  - shrink  r resize  k kick  p pause  w why  Tab device  ? help  q quit"


class Top(App[str]):
    """Shows what `feed` tells and does what keys ask of `actions`; returns why it ended, if so."""

    ENABLE_COMMAND_PALETTE = False
    AUTO_FOCUS = None  # or the prompt takes keys while it is hidden
    CSS = """
    Static { text-wrap: nowrap; text-overflow: ellipsis; }
    #header, #keys { height: 1; }
    #said { min-height: 1; height: auto; max-height: 3; text-wrap: wrap; }
    #devices { height: auto; }
    #log { height: 1fr; min-height: 3; border-top: solid $foreground 30%; scrollbar-size: 1 1; }
    #prompt { height: 1; border: none; padding: 0; }
    .hidden { display: none; }
    """
    BINDINGS: ClassVar[list[BindingType]] = [
        Binding("q,ctrl+c,ctrl+q", "quit", priority=False),
        Binding("plus,equals_sign", "step(1)"),
        Binding("minus", "step(-1)"),
        Binding("r", "prompt"),
        Binding("k", "kick"),
        Binding("p,space", "pause"),
        Binding("w", "why"),
        Binding("e", "every_step"),
        Binding("tab,down", "select(1)", priority=True),
        Binding("shift+tab,up", "select(-1)", priority=True),
        Binding("question_mark,h", "help"),
        Binding("escape", "leave_prompt"),
    ]

    def __init__(
        self, feed: Feed, actions: Actions, *, glyphs: dict[Look, str] | None = None
    ) -> None:
        super().__init__(ansi_color=True)
        self._feed = feed
        self._do = actions
        self._glyphs = glyphs or GLYPHS
        self._view: dict[str, Any] = {}
        self._wishes: dict[str, tuple[int, float]] = {}
        """By device: the size that a key asked for last, and when."""
        self._panels: list[Static] = []
        self._seen = self._lines = self._selected = 0

    def compose(self) -> ComposeResult:
        """From top to bottom."""
        yield Static(id="header")
        yield VerticalScroll(id="devices", can_focus=False)
        yield RichLog(id="log", max_lines=500, markup=False, highlight=False, wrap=False)
        yield Static(id="said")
        yield Input(id="prompt", classes="hidden", placeholder="1G, +256M, -256M")
        yield Static(KEYS, id="keys")

    def on_mount(self) -> None:
        """Start looking."""
        self.set_interval(LOOK, self._look)
        self.query_one("#log").can_focus = False

    def on_resize(self) -> None:
        """Lay out anew."""
        self._draw()

    @property
    def _devices(self) -> list[dict[str, Any]]:
        found: list[dict[str, Any]] = self._view.get("memory-devices", [])
        return found

    @property
    def _device(self) -> dict[str, Any] | None:
        """The one that keys act on."""
        return self._devices[self._selected % len(self._devices)] if self._devices else None

    def _look(self) -> None:
        state = self._feed.state
        if not self.query("#header"):
            return  # the screen is being taken down already
        if state.number != self._seen:
            self._seen = state.number
            self._show(state)

    def _show(self, state: State) -> None:
        if state.ended is not None:
            self.exit(state.ended)
            return
        self._view = state.view
        self._draw()
        lines = self._feed.log.since(self._lines)
        log = self.query_one("#log", RichLog)
        for line in lines:
            self._lines = line.number
            log.write(_line_text(line))

    def _draw(self) -> None:
        if not self._view:
            return
        self.query_one("#header", Static).update(header(self._view))
        devices = self.query_one("#devices", VerticalScroll)
        if not self._panels:  # a VM has the same devices all its life
            self._panels = [Static() for _ in self._devices] or [Static(NO_DEVICE)]
            devices.mount_all(self._panels)
        if not self._devices:
            return
        rows = self._map_rows()
        devices.styles.max_height = max(DEVICE, self.size.height - LOG)
        for number, (panel, device) in enumerate(zip(self._panels, self._devices, strict=True)):
            panel.update(
                device_text(
                    device,
                    width=max(10, self.size.width - 1),
                    rows=rows,
                    selected=device is self._device and len(self._devices) > 1,
                    glyphs=self._glyphs,
                )
            )
            if number == self._selected % len(self._devices) and len(self._devices) > 1:
                panel.scroll_visible(animate=False)

    def _map_rows(self) -> int:
        """Lines of map for each device, such that the log has its least."""
        room = self.size.height - 3 - LOG
        return max(1, min(8, room // len(self._devices) - (DEVICE - 1)))

    # -- keys --------------------------------------------------------------------------------------

    def action_select(self, by: int) -> None:
        """Another device."""
        self._selected += by
        self._draw()

    def action_step(self, direction: int) -> None:
        """A sixteenth of the region more or less."""
        device = self._device
        if device is not None:
            block, most = device["block-size"], device["max-size"]
            step = max(block, most // STEPS // block * block)
            size = min(most, max(0, self._wish(device) + direction * step))
            self._wishes[device["id"]] = size, time.monotonic()
            self._act(lambda: self._do.resize(device["id"], str(size)))

    def _wish(self, device: dict[str, Any]) -> int:
        """What was requested last: by a key, if views that were on their way may not show it."""
        size, at = self._wishes.get(device["id"], (0, -STALE))
        return size if time.monotonic() < at + STALE else int(device["requested-size"])

    def action_prompt(self) -> None:
        """Ask for a size."""
        if self._device is not None:
            self._say(f"requested size of {self._device['id']} (Enter sets it, Escape does not):")
            prompt = self.query_one("#prompt", Input)
            prompt.remove_class("hidden")
            prompt.focus()

    def action_leave_prompt(self) -> None:
        """Put the prompt away."""
        prompt = self.query_one("#prompt", Input)
        prompt.clear()
        prompt.add_class("hidden")
        self.set_focus(None)
        self._say("")

    def on_input_submitted(self, event: Input.Submitted) -> None:
        """A size was typed."""
        device, size = self._device, event.value.strip()
        self.action_leave_prompt()
        if device is not None and size:
            self._wishes.pop(device["id"], None)
            self._act(lambda: self._do.resize(device["id"], size))

    def action_kick(self) -> None:
        """Make the driver try again."""
        device = self._device
        if device is not None:
            self._act(lambda: self._do.kick(device["id"]))

    def action_pause(self) -> None:
        """Stop the vCPUs, or let them run."""
        self._act(self._do.toggle)

    def action_every_step(self) -> None:
        """Show all steps of requests, or what is kept anyway."""
        log = self._feed.log
        wanted = not log.every_step
        said = "every step is shown, which costs the VM time" if wanted else "what is kept is shown"

        def switch() -> str:
            log.want_every_step(wanted)
            return said

        self._act(switch)

    def action_why(self) -> None:
        """The diagnosis."""
        device = self._device
        if device is None:
            return

        def ask() -> str:
            found = self._do.why(device["id"])
            self.call_from_thread(self.push_screen, Pages(_diagnosis_text(found)))
            return ""

        self._say("asking ...")
        self._act(ask)

    def action_help(self) -> None:
        """Keys, and what the characters of the map mean."""
        self.push_screen(Pages(_help_text(self._glyphs)))

    def _act(self, action: Callable[[], str]) -> None:
        """Do `action` in a thread, since the VM may take its time; say what came of it."""

        def work() -> None:
            try:
                said = action()
            except MinivmmError as error:
                self.call_from_thread(self._say, str(error), bad=True)
            else:
                self.call_from_thread(self._say, said)

        self.run_worker(work, thread=True)

    def _say(self, text: str, *, bad: bool = False) -> None:
        said = Text(text, "bold red" if bad else "", no_wrap=True, overflow="ellipsis")
        self.query_one("#said", Static).update(said)


class Pages(ModalScreen[None]):
    """A text over the view, until a key."""

    CSS = """
    Pages { align: center middle; }
    #box Static { text-wrap: wrap; }
    #box { width: 90%; max-height: 90%; height: auto; border: round $foreground; padding: 0 1; }
    """

    def __init__(self, text: Text) -> None:
        super().__init__()
        self._text = text

    def compose(self) -> ComposeResult:
        """The text, scrollable."""
        with VerticalScroll(id="box"):
            yield Static(self._text)

    def on_key(self, event: Any) -> None:
        """Up and down scroll, others close."""
        if event.key not in ("up", "down", "pageup", "pagedown"):
            event.stop()
            self.dismiss()


def _line_text(line: Line) -> Text:
    clock = time.strftime("%H:%M:%S", time.localtime(line.wall))
    text = Text(f"{clock}.{int(line.wall * 1000) % 1000:03} ", "bright_black")
    text.append(f"{line.source} ", "bold")
    # The answer to a request speaks for itself, and eighty columns are few.
    text.append(line.text if line.name == "answer" else f"{line.name} {line.text}")
    return text


def _diagnosis_text(found: list[dict[str, Any]]) -> Text:
    text = Text()
    for diagnosis in found:
        sure = "" if diagnosis["certain"] else "probably "
        text.append(f"{diagnosis['id']}: {sure}{diagnosis['kind']}\n", "bold")
        text.append(f"{diagnosis['summary']}\n")
        for line in diagnosis["evidence"]:
            text.append(f"  {line}\n", "bright_black")
        if diagnosis["remedy"]:
            text.append(f"remedy: {diagnosis['remedy']}\n", "bold")
    return text


def _help_text(glyphs: dict[Look, str]) -> Text:
    text = Text()
    for keys, meaning in (
        ("+ -", "request a sixteenth of the region more, or less"),
        ("r", "request a size: 1G, +256M, -256M"),
        ("k", "kick: have the driver try again at once"),
        ("p", "pause and resume the vCPUs"),
        ("w", "why the device has, or has not, what was asked for"),
        ("e", "every step of requests in the log (costs the VM time), or what is kept"),
        ("Tab", "the next device"),
        ("q", "quit; the VM runs on"),
    ):
        text.append(f"{keys:>5}  ", "bold").append(f"{meaning}\n")
    text.append("\n")
    for look, meaning in (
        (Look.HELD, "plugged, with host memory behind it"),
        (Look.PLUGGED, "plugged, hardly any host memory yet"),
        (Look.MIXED, "plugged in part"),
        (Look.UNPLUGGED, "unplugged"),
        (Look.UNUSABLE, "(blank) beyond the usable region"),
        (Look.GREW, "plugged just now"),
        (Look.SHRANK, "unplugged just now"),
    ):
        text.append(f"{glyphs[look]:>5}  ", STYLES[look]).append(f"{meaning}\n")
    return text
