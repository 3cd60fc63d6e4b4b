"""The workbench of a passed-on device."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest

from minivmm.spec import pci
from minivmm.testing.fake_vfio_device import FakePciDevice
from minivmm.testing.vfio_bench import MEMORY_AND_MASTER, VfioBench
from minivmm.vfio import ioctl

MakeBench = Callable[..., VfioBench]


@pytest.fixture
def make_bench(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[MakeBench]:
    """Makes benches; memory space and bus mastering are on."""
    with ExitStack() as stack:

        def make(device: FakePciDevice | None = None) -> VfioBench:
            bench = VfioBench(tmp_path, device)
            monkeypatch.setattr(ioctl, "raw", bench.host.ioctl)
            bench.plug_in()
            stack.callback(bench.close)
            bench.driver.write_pci(pci.COMMAND, 2, MEMORY_AND_MASTER)
            return bench

        yield make


@pytest.fixture
def bench(make_bench: MakeBench) -> VfioBench:
    """One bench."""
    return make_bench()
