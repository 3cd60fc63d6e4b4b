"""Text of the terminal view: header, one device, its map; from views to styled lines."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from rich.text import Text

from minivmm.ui.condensed import Look, condense
from minivmm.ui.words import rough_size
from minivmm.units import format_size

STYLES = {
    Look.UNUSABLE: "",
    Look.UNPLUGGED: "bright_black",
    Look.MIXED: "cyan",
    Look.PLUGGED: "bright_blue",
    Look.HELD: "blue",
    Look.GREW: "bold green",
    Look.SHRANK: "bold yellow",
}


def header(view: Mapping[str, Any]) -> Text:
    """One line on the machine."""
    agent = view["agent"]
    guest = f"Linux {agent['kernel-release']}" if agent["ready"] else "agent not ready"
    text = Text(no_wrap=True, overflow="ellipsis")
    text.append(f" {view['name']} ", "bold reverse")
    text.append(f"  {view['status']}", "bold green" if view["status"] == "running" else "bold red")
    text.append(
        f"  {format_size(view['base-memory'])} at boot, {guest}, memslots {view['memslots']}"
    )
    return text


def device_text(
    device: Mapping[str, Any],
    *,
    width: int,
    rows: int,
    selected: bool,
    glyphs: Mapping[Look, str],
) -> Text:
    """Sizes, at most `rows` lines of map, counters; in lines of `width` columns."""
    text = Text(no_wrap=True, overflow="ellipsis")
    text.append(">" if selected else " ", "bold")
    text.append(f"{device['id']}", "bold reverse" if selected else "bold")
    done = device["size"] == device["requested-size"]
    text.append(f"  node {device['node']}  requested ")
    text.append(format_size(device["requested-size"]), "bold")
    text.append("  plugged ")
    text.append(format_size(device["size"]), "bold green" if done else "bold yellow")
    text.append(f"  usable {format_size(device['usable-size'])}")
    text.append(f"  of {format_size(device['max-size'])}\n")
    looks = condense(device, (width - 2) * rows)
    for at in range(0, len(looks), width - 2):
        text.append("│" if glyphs[Look.HELD] == "█" else "|", "bright_black")
        for look in looks[at : at + width - 2]:
            text.append(glyphs[look], STYLES[look])
        text.append("\n")
    text.append(f" {_counters(device)}\n")
    text.append(f" {_state(device)}")
    return text


def _counters(device: Mapping[str, Any]) -> str:
    rates, residency = device["rates"], device["residency"]
    words = [f"host {rough_size(residency['resident']) if residency else '?'}"]
    words.append(f"{rates['requests']:.1f} requests/s")
    if rates["size"]:
        words.append(f"{'+' if rates['size'] > 0 else ''}{rough_size(rates['size'])}/s")
    for request, times in device["answers"].items():
        words.append(f"{request} " + " ".join(f"{count} {name}" for name, count in times.items()))
    return "  ".join(words)


def _state(device: Mapping[str, Any]) -> str:
    words = ["driver up" if "DRIVER_OK" in device["driver"] else "no driver"]
    for queue in device["queues"]:
        used = queue.get("used", queue.get("next-used"))
        words.append(
            f"queue {queue['index']} {queue['format']} {queue['size']}: avail"
            f" {queue['next-avail']} used {used} in flight {queue['in-flight']}"
        )
    if device["trouble"]:
        words.append(f"BROKEN: {device['trouble']}")
    if device["short-of"]:
        words.append(f"host short of {rough_size(device['short-of'])}")
    if device["intrusions"]:
        words.append(f"{device['intrusions']} intrusions")
    return "  ".join(words)
