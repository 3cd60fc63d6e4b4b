"""`minivmm report`: the page is whole and needs nothing else; figures and JSON."""

from __future__ import annotations

import json
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest

from minivmm.cli.main import run
from minivmm.report.page import page
from minivmm.units import MIB


class Outline(HTMLParser):
    """Collects tags that are open, texts, and addresses of other files."""

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []
        self.texts: list[str] = []
        self.titles: list[str] = []
        self.links: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.links += [value or "" for name, value in attrs if name in ("src", "href")]
        if tag != "meta":
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        pass

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.texts.append(data)
        if self.open and self.open[-1] == "title":
            self.titles.append(data)


def outline(html: str) -> Outline:
    found = Outline()
    found.feed(html)
    assert found.open == []
    return found


def test_page_is_well_formed_and_loads_nothing(tape: Any) -> None:
    html = page(tape.story())

    found = outline(html)
    assert found.links == []
    assert "url(" not in html and "@import" not in html


def test_page_tells_of_each_resize(tape: Any) -> None:
    texts = outline(page(tape.story())).texts

    for said in ("256M", "done", "unfinished", "232 ms", "BUSY", "UNPLUG", "0x108000000"):
        assert said in texts
    assert "400 ms (256M)" in texts  # onlined


def test_map_says_what_is_plugged_where(tape: Any) -> None:
    titles = outline(page(tape.story())).titles

    assert any(title.startswith("0x100000000: 100% of 4M from ") for title in titles)


def test_names_from_the_file_are_text_and_nothing_else(tape: Any) -> None:
    tape.lines[0]["name"] = "<script>alert(1)</script>"
    tape.event(12.3, "answer", id=7, type="<b>", answer="<i>", plugged=0, why="<u>")

    html = page(tape.story())

    assert "<script>" not in html
    assert "<b>" not in html and "<i>" not in html and "<u>" not in html


def test_page_warns_of_what_is_missing(tape: Any, new_tape: Any) -> None:
    tape.lines.append({"n": 99, "t": 12.5, "source": "trace", "name": "dropped", "count": 5})
    tape.lines[0] |= {"details": [], "filter": ["vmem0"]}

    text = " ".join(outline(page(tape.story())).texts)

    assert "5 events are missing" in text
    assert "lacks the life of requests" in text
    assert "filtered by" in text


def test_empty_trace_has_a_page(new_tape: Any) -> None:
    text = " ".join(outline(page(new_tape().story())).texts)

    assert "Nobody set a size" in text


def test_report_writes_the_page_beside_the_trace(
    trace_file: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(["report", str(trace_file)]) == 0

    assert outline(trace_file.with_suffix(".html").read_text()).texts
    assert "work.html" in capsys.readouterr().err


def test_json_has_the_figures(trace_file: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["report", "--json", str(trace_file)]) == 0

    (device,) = json.loads(capsys.readouterr().out)["devices"]
    grow, shrink = device["resizes"]
    assert (grow["size-before"], grow["size-after"]) == (0, 256 * MIB)
    assert grow["host-seconds"] == pytest.approx(0.04)
    assert shrink["outcome"] == "unfinished"
    assert not trace_file.with_suffix(".html").exists()


def test_figures_of_every_kind(trace_file: Path, tmp_path: Path) -> None:
    figures = tmp_path / "figures"

    assert run(["report", str(trace_file), "--svg", str(figures), "--png", str(figures)]) == 0

    names = sorted(path.name for path in figures.iterdir())
    assert names == sorted(
        f"vmem0-{name}.{kind}"
        for name in ("sizes", "latency", "blocks", "answers")
        for kind in ("svg", "png")
    )
    assert (figures / "vmem0-sizes.png").read_bytes().startswith(b"\x89PNG")
    assert "requested" in (figures / "vmem0-sizes.svg").read_text()


def test_page_that_cannot_be_written_is_one_line(
    trace_file: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(["report", str(trace_file), "-o", "/nonexistent/x.html"]) == 1

    assert capsys.readouterr().err.count("\n") == 1


def test_file_that_is_no_trace_is_one_line(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "x"
    path.write_text("hello\n")

    assert run(["report", str(path)]) == 2

    assert "x, line 1: not an event" in capsys.readouterr().err
