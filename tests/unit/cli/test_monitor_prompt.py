"""The monitor's prompt on a console."""

from __future__ import annotations

import pytest

from minivmm.cli.monitor_prompt import PROMPT, MonitorPrompt


class Bench:
    def __init__(self) -> None:
        self.lines: list[str] = []
        self.shown = ""
        self.prompt = MonitorPrompt(self._run, self._write)

    def _run(self, line: str) -> str:
        self.lines.append(line)
        return f"did {line}\r\n"

    def _write(self, text: str) -> None:
        self.shown += text


@pytest.fixture
def bench() -> Bench:
    made = Bench()
    made.prompt.toggle()
    return made


def test_it_greets_and_prompts(bench: Bench) -> None:
    assert bench.prompt.open
    assert "Ctrl-A c" in bench.shown
    assert bench.shown.endswith(PROMPT)


def test_a_line_is_run_and_what_it_prints_is_shown(bench: Bench) -> None:
    for key in b"info status\r":
        bench.prompt.feed(bytes((key,)))

    assert bench.lines == ["info status"]
    assert bench.shown.endswith(f"{PROMPT}info status\ndid info status\n{PROMPT}")


def test_editing(bench: Bench) -> None:
    bench.prompt.feed(b"stopp\x7f\r")
    bench.prompt.feed(b"nonsense\x15cont\r")
    bench.prompt.feed(b"\x7f\x7fquit\x08t\r")

    assert bench.lines == ["stop", "cont", "quit"[:3] + "t"]


def test_keys_that_mean_nothing_are_left_out(bench: Bench) -> None:
    bench.prompt.feed(b"in\x1bfo\xff\x00\r")

    assert bench.lines == ["info"]


def test_an_empty_line_only_prompts(bench: Bench) -> None:
    bench.prompt.feed(b"\r  \r")

    assert bench.lines == []
    assert bench.shown.endswith(PROMPT)


def test_ctrl_d_and_ctrl_a_c_go_back(bench: Bench) -> None:
    bench.prompt.feed(b"half\x04rest")

    assert not bench.prompt.open
    bench.prompt.toggle()
    bench.prompt.feed(b"whole\r")
    assert bench.lines == ["whole"]
    bench.prompt.toggle()
    assert not bench.prompt.open
