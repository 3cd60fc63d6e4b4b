"""The web view of the fake machine, served for real; and a browser to look at it."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from minivmm.runtime import MachineDir
from minivmm.testing.fake_machine import FakeMachine
from minivmm.ui.actions import Actions
from minivmm.ui.feed import Feed
from minivmm.ui.guard import Listen
from minivmm.ui.server import WebView

TOKEN = "token-of-the-test"


@pytest.fixture
def feed(live: MachineDir, machine: FakeMachine) -> Iterator[Feed]:
    """Follows the machine, whose guest does as told; looks often."""
    machine.follows = True
    feed = Feed(live, cells=256, interval=0.05)
    yield feed
    feed.close()


@pytest.fixture
def web(live: MachineDir, feed: Feed) -> Iterator[WebView]:
    view = WebView(feed, Actions(live), Listen(), TOKEN)
    yield view
    view.close()
