"""A headless chromium that uses the live view's page as a person does; Debian's, by selenium.

Fails where chromium is missing: a page that no browser has seen is not tested.
"""

from __future__ import annotations

import shutil
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from selenium import webdriver
from selenium.webdriver.chrome.options import Options
from selenium.webdriver.chrome.service import Service
from selenium.webdriver.common.action_chains import ActionChains
from selenium.webdriver.common.by import By
from selenium.webdriver.remote.webelement import WebElement

from minivmm.closing import Closing

PROGRAMS = ("chromium", "chromedriver")

# Root has no sandbox, containers have a small /dev/shm, and nobody is to be called at home.
_ARGUMENTS = (
    "--headless=new",
    "--no-sandbox",
    "--disable-dev-shm-usage",
    "--disable-gpu",
    "--disable-background-networking",
    "--no-first-run",
    "--window-size=1200,1400",
)


class Browser(Closing):
    """A browser with one page; profile and cache lie in `directory`. Use as a context."""

    def __init__(self, directory: Path) -> None:
        found = [shutil.which(name) for name in PROGRAMS]
        if None in found:
            raise FileNotFoundError("chromium or its driver is missing: scripts/setup installs it")
        options = Options()
        options.binary_location = str(found[0])
        for argument in (*_ARGUMENTS, f"--user-data-dir={directory}"):
            options.add_argument(argument)
        options.set_capability("goog:loggingPrefs", {"browser": "ALL"})
        self.driver = webdriver.Chrome(options=options, service=Service(str(found[1])))

    def close(self) -> None:
        """End it."""
        self.driver.quit()

    def open(self, url: str) -> None:
        """Go to `url`."""
        self.driver.get(url)

    def complaints(self) -> list[str]:
        """What the page and the browser have had to complain about since the last call."""
        entries: list[dict[str, Any]] = self.driver.get_log("browser")  # type: ignore[no-untyped-call]
        return [str(entry["message"]) for entry in entries]

    def find(self, selector: str) -> WebElement:
        """The first element that the CSS `selector` matches."""
        return self.driver.find_element(By.CSS_SELECTOR, selector)

    def field(self, device: str, name: str) -> WebElement:
        """Field `name` of the card of memory device `device`."""
        return self.find(f'[data-device="{device}"] [data-field="{name}"]')

    def size(self, device: str, name: str) -> int:
        """A size that the card shows, in bytes; -1 before it is shown."""
        found = self.driver.find_elements(
            By.CSS_SELECTOR, f'[data-device="{device}"] [data-field="{name}"]'
        )
        return int(found[0].get_attribute("data-bytes") or -1) if found else -1

    def drag_slider(self, device: str, part: float) -> int:
        """Drag the slider to about `part` (0..1) of its way with the mouse; returns its value."""
        slider = self.field(device, "slider")
        width = int(slider.rect["width"])
        most, value = int(slider.get_attribute("max") or 1), self.slider(device)
        knob = 16  # pixels, of which the middle is what counts
        way = width - knob

        def at(value: float) -> int:
            return round(knob / 2 + way * value / most - width / 2)

        ActionChains(self.driver).move_to_element_with_offset(
            slider, at(value), 0
        ).click_and_hold().move_by_offset(at(part * most) - at(value), 0).release().perform()
        return self.slider(device)

    def slider(self, device: str) -> int:
        """Where the slider is, in blocks."""
        return int(self.run("return arguments[0].valueAsNumber", self.field(device, "slider")))

    def press(self, selector: str) -> None:
        """Click on what the CSS `selector` matches."""
        self.find(selector).click()

    def run(self, script: str, *arguments: Any) -> Any:
        """What `script` returns in the page."""
        return self.driver.execute_script(script, *arguments)

    def wait(self, condition: Callable[[], object], what: str, seconds: float = 10.0) -> None:
        """Until `condition()` is true. Raises TimeoutError that tells `what` did not come."""
        deadline = time.monotonic() + seconds
        while not condition():
            if time.monotonic() > deadline:
                raise TimeoutError(f"{what} did not come within {seconds:g} s")
            time.sleep(0.05)
