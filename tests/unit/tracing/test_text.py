"""Events in words."""

from __future__ import annotations

from typing import Any

import pytest

from minivmm.tracing.text import duration, header_line, line
from minivmm.units import GIB, MIB


def made(name: str, **fields: Any) -> str:
    """The line on an event, without its head."""
    event = {"n": 1, "t": 1.5, "source": "vmem0", "name": name}
    event |= {key.replace("_", "-"): value for key, value in fields.items()}
    return line(event).partition(name)[2].strip()


def test_an_answer_says_what_was_asked_and_what_came_of_it(event: dict[str, Any]) -> None:
    assert line(event) == (
        "   12.502113 vmem0    answer    #93 PLUG 64 blocks at 0x100000000 (128M): ACK;"
        " plugged 256M of 1G"
    )


def test_a_refusal_says_why(event: dict[str, Any]) -> None:
    event |= {"answer": "NACK", "why": "more than requested-size", "blocks": 1, "size": 2 * MIB}

    assert "PLUG 1 block at 0x100000000 (2M): NACK (more than requested-size); " in line(event)


@pytest.mark.parametrize(
    ("said", "words"),
    [
        (made("request", id=3, type="UNPLUG_ALL"), "#3 UNPLUG_ALL"),
        (made("request", id=3, type=77), "#3 77"),
        (made("kick", id=3, queue=0), "#3 queue 0"),
        (made("used", id=3, queue=0, written=10, seconds=0.0123), "#3 queue 0: 10 bytes, 12.3 ms"),
        (made("interrupt", id=3, queue=0, ids=[3]), "#3 queue 0"),
        (made("interrupt", id=3, queue=0, ids=[3, 4]), "#3 queue 0, for #3, #4"),
        (made("interrupt", queue=0, ids=[]), "queue 0"),
        (made("config"), ""),
        (
            made("chain", id=3, queue=0, kick=3, readable=24, writable=10, descriptors=2),
            "#3 queue 0: 24 bytes to read, 10 to write, 2 descriptors",
        ),
        (made("discard", gpa=4 * GIB, size=2 * MIB, seconds=2e-6), "2M at 0x100000000, 2 us"),
        (
            made("populate", gpa=4 * GIB, size=2 * MIB, seconds=2, error="no memory"),
            "2M at 0x100000000, 2.00 s: no memory",
        ),
        (made("resize", requested_size=GIB, usable_size=2 * GIB), "requested 1G, usable 2G"),
        (made("exit", kind="shutdown", seconds=1e-6), "shutdown, 1 us"),
        (
            made("exit", kind="io-out", port=0x3F8, size=1, count=1, value="0x41", seconds=1e-5),
            "io-out port 0x3f8, size 1, value 0x41, 10 us",
        ),
        (
            made("exit", kind="mmio-read", gpa=0xC000_0000, size=4, seconds=1e-5, value="0x0"),
            "mmio-read 0xc0000000, size 4, value 0x0, 10 us",
        ),
        (made("exit", session=3, status=0, known=True), "session=3 status=0 known=True"),
        (made("dropped", count=5), "5 events are missing here"),
        (
            made("new-one", gpa=4096, seconds=0.5, plugged=GIB),
            "gpa=0x1000 seconds=500.0 ms plugged=1G",
        ),
    ],
)
def test_words(said: str, words: str) -> None:
    assert said == words


def test_what_a_guest_wrote_cannot_command_a_terminal() -> None:
    said = made("bad-line", line="\x1b[2Jgone\n\x9b0m" + "x" * 1000)

    assert said.startswith(r"line=\x1b[2Jgone\n\x9b0m")
    assert len(said) < 400


def test_durations() -> None:
    assert [duration(s) for s in (0, 1e-6, 0.000999, 0.0015, 0.999, 1)] == [
        "0 us",
        "1 us",
        "999 us",
        "1.5 ms",
        "999.0 ms",
        "1.00 s",
    ]


def test_the_header_in_a_line() -> None:
    header = {
        "name": "work",
        "t": 12.25,
        "clock": {"wall": 1.7e9, "monotonic": 5.0},
        "devices": [
            {
                "id": "vmem0",
                "memaddr": 4 * GIB,
                "region-size": 4 * GIB,
                "block-size": 2 * MIB,
                "state": {"plugged-size": 0, "requested-size": GIB},
            },
            {"id": "rng0", "type": "virtio-rng", "state": {}},
        ],
    }

    said = header_line(header)

    assert said.startswith("# work, began 2023-11-1")
    assert said.endswith(
        ", now at 12.250000 s; vmem0: 4G at 0x100000000, blocks of 2M, plugged 0 of 1G"
    )
