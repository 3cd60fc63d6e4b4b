"""What the host does not allow is refused at start, with the sizes that would work."""

from __future__ import annotations

import re
import resource
from pathlib import Path

import pytest

from minivmm import dma_limits
from minivmm.dma_limits import SparseRegion, check_container, check_locked, lockable
from minivmm.errors import HostError
from minivmm.memory.layout import Window
from minivmm.testing.fake_container import FakeContainer
from minivmm.units import GIB, MIB, TIB, parse_size

RAM = [Window(0, 2 * GIB)]
TYPE1 = 65535


def region(size: int, block: int = 2 * MIB, name: str = "vmem0", at: int = 4 * GIB) -> SparseRegion:
    return SparseRegion(name, Window(at, size), block)


def test_what_fits_is_fine() -> None:
    check_container(FakeContainer(TYPE1), RAM, [region(127 * GIB)])


def test_without_a_limit_any_number_of_blocks_is_fine() -> None:
    check_container(FakeContainer(None), RAM, [region(16 * TIB)])


def test_too_many_blocks_are_refused_with_the_sizes_that_work() -> None:
    with pytest.raises(HostError) as caught:
        check_container(FakeContainer(TYPE1), RAM, [region(128 * GIB)])

    line = str(caught.value)
    assert "vmem0: 128G in blocks of 2M may need 65537 DMA mappings" in line
    assert "allows 65535" in line and "dma_entry_limit=65537" in line
    block = re.search(r"use block-size=(\w+)", line)
    size = re.search(r" size=(\w+)", line)
    assert block and size
    check_container(FakeContainer(TYPE1), RAM, [region(128 * GIB, parse_size(block[1]))])
    check_container(FakeContainer(TYPE1), RAM, [region(parse_size(size[1]))])
    with pytest.raises(HostError):
        check_container(FakeContainer(TYPE1), RAM, [region(parse_size(size[1]) + 2 * MIB)])


def test_the_larger_block_divides_the_region() -> None:
    with pytest.raises(HostError, match="use block-size=1G,"):
        check_container(FakeContainer(6), RAM, [region(5 * GIB)])


def test_a_host_with_too_few_mappings_for_any_block_offers_none() -> None:
    with pytest.raises(HostError) as caught:
        check_container(FakeContainer(1), RAM, [region(5 * GIB)])

    assert "block-size" not in str(caught.value) and " size=" not in str(caught.value)


def test_regions_share_the_mappings_and_the_largest_is_named() -> None:
    others = region(64 * GIB, name="vmem1", at=256 * GIB)

    with pytest.raises(HostError, match=r"^vmem0: 96G .* use block-size=4M"):
        check_container(FakeContainer(TYPE1), RAM, [others, region(96 * GIB)])


def test_blocks_below_a_page_of_the_iommu_are_refused() -> None:
    with pytest.raises(HostError, match="use block-size=4M or more"):
        check_container(FakeContainer(page_sizes=4 * MIB), RAM, [region(GIB)])


def test_memory_out_of_reach_of_devices_is_refused() -> None:
    container = FakeContainer()
    container.windows = ((0, 0xFEDF_FFFF), (0xFEF0_0000, (1 << 39) - 1))
    check_container(container, RAM, [region(GIB)])

    with pytest.raises(HostError, match=r"vmem0 at 0x7fc0000000-0x803fffffff is not all in reach"):
        check_container(container, RAM, [region(2 * GIB, at=511 * GIB)])
    with pytest.raises(HostError, match="RAM at"):
        check_container(container, [Window(0, 1 << 32)], [])


def test_locked_memory_that_does_not_do_for_the_start_is_refused() -> None:
    with pytest.raises(
        HostError, match=r"512M of it at start, .* lock 8M only .*ulimit -l 4718592"
    ):
        check_locked(512 * MIB, 512 * MIB + 4 * GIB, 8 * MIB)


def test_locked_memory_that_does_for_the_start_only_is_warned_of() -> None:
    warning = check_locked(512 * MIB, 5 * GIB, GIB)

    assert warning is not None and "cannot grow beyond" in warning
    assert check_locked(512 * MIB, GIB, GIB) is None
    assert check_locked(512 * MIB, GIB, None) is None


class Host:
    """What /proc and the limits say."""

    def __init__(self, patch: pytest.MonkeyPatch, tmp_path: Path) -> None:
        self.limit = (8 * MIB, 64 * MIB)
        self.proc = tmp_path
        patch.setattr(dma_limits, "Path", lambda path: tmp_path / path.removeprefix("/"))
        patch.setattr(resource, "getrlimit", lambda _which: self.limit)
        patch.setattr(resource, "setrlimit", self._set)
        (tmp_path / "proc/self").mkdir(parents=True)

    def is_like(self, capabilities: int, users: str) -> None:
        (self.proc / "proc/self/status").write_text(
            f"Name:\tpython\nCapEff:\t{capabilities:016x}\n"
        )
        (self.proc / "proc/self/uid_map").write_text(users)

    def _set(self, _which: int, limit: tuple[int, int]) -> None:
        self.limit = limit


@pytest.fixture
def host(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Host:
    return Host(monkeypatch, tmp_path)


WHOLE = "         0          0 4294967295\n"


def test_root_may_lock_any_amount(host: Host) -> None:
    host.is_like(1 << dma_limits.CAP_IPC_LOCK, WHOLE)

    assert lockable() is None
    assert host.limit == (8 * MIB, 64 * MIB)


def test_others_get_what_the_hard_limit_allows(host: Host) -> None:
    host.is_like(0, WHOLE)

    assert lockable() == 64 * MIB
    assert host.limit == (64 * MIB, 64 * MIB)


def test_root_of_a_user_namespace_is_nobody_special(host: Host) -> None:
    host.is_like((1 << 41) - 1, "0 1000 1\n")

    assert lockable() == 64 * MIB


def test_no_limit_is_none(host: Host) -> None:
    host.is_like(0, WHOLE)
    host.limit = (8 * MIB, resource.RLIM_INFINITY)

    assert lockable() is None
