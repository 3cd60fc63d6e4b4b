"""The counter's rate, against the kernel's own idea of time."""

from __future__ import annotations

import mmap
import platform

import pytest

from minivmm.lab import host_clock
from minivmm.lab.host_clock import counter_khz


@pytest.mark.skipif(platform.machine() != "x86_64", reason="another processor's counter")
def test_rate_is_the_same_however_long_it_is_measured(monkeypatch: pytest.MonkeyPatch) -> None:
    first = counter_khz()
    monkeypatch.setattr(host_clock, "MEASURE_SECONDS", 0.2)
    second = counter_khz()

    assert first is not None and second is not None
    assert 100_000 < first < 10_000_000  # 0.1 to 10 GHz
    assert first == pytest.approx(second, rel=0.001)


def test_rate_is_unknown_where_no_code_may_be_made(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object, **__: object) -> None:
        raise PermissionError

    monkeypatch.setattr(mmap, "mmap", refuse)

    assert counter_khz() is None


def test_rate_is_unknown_on_other_processors(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(platform, "machine", lambda: "aarch64")

    assert counter_khz() is None
