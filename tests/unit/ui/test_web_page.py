"""The page in a real browser: what it shows, and what its slider and buttons do to the machine."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from minivmm.testing.browser import Browser
from minivmm.testing.fake_machine import FakeMachine
from minivmm.ui.server import WebView
from minivmm.units import GIB, MIB

BLOCK = 2 * MIB
VMEM0 = '[data-device="vmem0"] '

pytestmark = pytest.mark.timeout(120)


@pytest.fixture(scope="module")
def chromium(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Browser]:
    with Browser(tmp_path_factory.mktemp("chromium")) as browser:
        yield browser


@pytest.fixture
def page(chromium: Browser, web: WebView) -> Iterator[Browser]:
    """The page of the machine, with its first view on it; complaints fail the test."""
    chromium.complaints()
    chromium.open(web.url)
    chromium.wait(lambda: chromium.size("vmem0", "max-size") == GIB, "the first view")
    yield chromium
    chromium.open("about:blank")
    refused = "400 (Bad Request)"  # how the browser reports what a test has provoked
    assert [line for line in chromium.complaints() if refused not in line] == []


def colour(page: Browser, cell: int) -> str:
    """Name of the legend's colour that the map has in the middle of `cell`."""
    found = page.run(
        """
        const canvas = document.querySelector('[data-field="map"]');
        const width = canvas.clientWidth, scale = devicePixelRatio;
        const size = Math.max(6, Math.min(16, Math.floor(Math.sqrt(width * 110 / 256))));
        const columns = Math.floor(width / size);
        const x = (arguments[0] % columns + 0.5) * size * scale;
        const y = (Math.floor(arguments[0] / columns) + 0.5) * size * scale;
        const probe = document.createElement("canvas").getContext("2d", {willReadFrequently: true});
        probe.drawImage(canvas, x, y, 1, 1, 0, 0, 1, 1);
        const pixel = probe.getImageData(0, 0, 1, 1).data;
        const style = getComputedStyle(document.documentElement);
        for (const name of ["unusable", "unplugged", "mixed", "plugged"]) {
          probe.fillStyle = style.getPropertyValue("--" + name);
          probe.fillRect(0, 0, 1, 1);
          const wanted = probe.getImageData(0, 0, 1, 1).data;
          if ([0, 1, 2].every(i => wanted[i] === pixel[i])) return name;
        }
        return String(pixel);
        """,
        cell,
    )
    return str(found)


def test_the_page_shows_the_machine(page: Browser) -> None:
    assert page.find("#name").text == "vm1"
    assert page.find("#status").text == "running"
    assert page.driver.title == "vm1 - minivmm"
    assert page.field("vmem0", "driver").text == "driver up"
    assert page.field("vmem0", "place").text.startswith("node 0, 0x100000000-0x13fffffff, blocks")
    assert page.field("vmem0", "size").text == "0"


def test_the_slider_requests_and_the_plugged_size_follows(
    page: Browser, machine: FakeMachine
) -> None:
    device = machine.memory_devices["vmem0"]
    assert colour(page, 0) == "unusable"

    chosen = page.drag_slider("vmem0", 0.5) * BLOCK

    assert abs(chosen - GIB // 2) <= GIB // 50
    page.wait(lambda: page.size("vmem0", "size") == chosen, "the plugged size")
    assert device.requested_size == device.plugged_size == chosen
    assert page.size("vmem0", "requested-size") == chosen
    assert page.slider("vmem0") * BLOCK == chosen
    cells = chosen // BLOCK // 2
    page.wait(lambda: colour(page, cells - 1) == "plugged", "the last plugged cell")
    assert colour(page, 0) == "plugged"
    assert colour(page, cells + 1) == "unplugged"
    answers = page.field("vmem0", "answers").text
    assert f"PLUG ACK {device.ledger.counts()['PLUG']['ACK']}" in answers
    page.wait(
        lambda: "PLUG 64 blocks at 0x100000000 (128M): ACK" in page.find("#lines").text, "the log"
    )

    page.drag_slider("vmem0", 0.0)

    page.wait(lambda: page.size("vmem0", "size") == 0, "the plugged size")
    assert device.plugged_size == 0
    page.wait(lambda: "UNPLUG" in page.find("#lines").text, "the log")
    assert colour(page, 0) == "unplugged"


def test_a_size_can_be_typed_and_a_bad_one_is_explained(
    page: Browser, machine: FakeMachine
) -> None:
    page.field("vmem0", "exact").send_keys("+96M\n")
    page.wait(lambda: page.size("vmem0", "size") == 96 * MIB, "the plugged size")

    page.field("vmem0", "exact").send_keys("3M\n")
    page.wait(lambda: "not a multiple of block-size 2M" in page.find("#notice").text, "the error")

    assert machine.memory_devices["vmem0"].requested_size == 96 * MIB


def test_buttons_pause_kick_and_ask_why(page: Browser, machine: FakeMachine) -> None:
    page.press("#pause")
    page.wait(lambda: page.find("#status").text == "paused", "the pause")
    assert machine.state == "paused"
    page.wait(lambda: page.find("#pause").text == "Resume", "the other word")
    page.press("#pause")
    page.wait(lambda: page.find("#status").text == "running", "the resumption")

    before = machine.memory_devices["vmem0"].activity.config_at
    page.press(VMEM0 + '[data-action="kick"]')
    page.wait(lambda: "interrupt sent" in page.find("#notice").text, "what the kick did")
    assert machine.memory_devices["vmem0"].activity.config_at != before

    page.press(VMEM0 + '[data-action="why"]')
    page.wait(lambda: "done: " in page.field("vmem0", "diagnosis").text, "the diagnosis")


def test_the_log_can_be_filtered(page: Browser, machine: FakeMachine) -> None:
    with machine.lock:
        machine.trace.emit("vcpu0", "oddity", text="<b>bold</b>")
        machine.trace.emit("rng0", "other")
    page.wait(lambda: "other" in page.find("#lines").text, "the events")
    assert "<b>bold</b>" in page.find("#lines").text, "shown, not obeyed"

    page.find("#filter").send_keys("vcpu0")

    assert "other" not in page.find("#lines").text
    assert "oddity" in page.find("#lines").text


def test_the_page_loads_nothing_from_elsewhere(page: Browser, web: WebView) -> None:
    loaded = page.run("return performance.getEntriesByType('resource').map(entry => entry.name)")

    assert len(loaded) >= 3
    assert all(name.startswith(web.url) for name in loaded)


def test_a_page_that_is_opened_later_has_the_past(
    page: Browser, web: WebView, machine: FakeMachine
) -> None:
    page.drag_slider("vmem0", 0.25)
    page.wait(lambda: page.size("vmem0", "size") > 0, "the plugged size")

    page.open(web.url)

    page.wait(lambda: "PLUG" in page.find("#lines").text, "the log of before")


def test_the_end_of_the_vm_is_told(page: Browser, machine: FakeMachine) -> None:
    with machine.lock:
        machine.request_quit()

    page.wait(lambda: page.find("#status").text == "ended", "the end")
    assert page.find("#notice").text == "the VM has ended"
    assert not page.field("vmem0", "slider").is_enabled()


def test_a_page_without_the_token_shows_nothing(chromium: Browser, web: WebView) -> None:
    chromium.open(web.url.replace("token-of-the-test", "guess"))

    assert "right token" in chromium.find("body").text
    chromium.complaints()
