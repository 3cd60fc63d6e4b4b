"""The saved state of a disk: its file must have the content that the guest knows."""

from __future__ import annotations

import errno
import os
import re
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from minivmm.devices.virtio_blk.device import VirtioBlk
from minivmm.devices.virtio_blk.saved import BLK
from minivmm.devices.virtio_blk.spec import VirtioBlkSpec
from minivmm.errors import BadState, HostError
from minivmm.spec.virtio_blk import SECTOR, BlkConfig
from minivmm.units import MIB

Make = Callable[..., VirtioBlk]


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "disk.img"
    path.write_bytes(bytes(MIB))
    return path


@pytest.fixture
def make(file: Path) -> Iterator[Make]:
    made: list[VirtioBlk] = []

    def make(**options: object) -> VirtioBlk:
        for device in made:
            device.close()
        made.append(VirtioBlk(VirtioBlkSpec(file=str(file), **options)))  # type: ignore[arg-type]
        return made[-1]

    yield make
    for device in made:
        device.close()


def test_disk_goes_on_as_the_driver_left_it(make: Make) -> None:
    old = make()
    old.accept_features(old.offered_features())
    old.failures = 3
    data = old.save_state()
    new = make()

    new.load_state(data)

    assert new.save_state() == data
    assert BlkConfig.parse(new.config_space()).writeback
    assert new.inspect()["failures"] == 3


def test_everything_is_on_stable_storage_before_a_state_is_given(
    make: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    flushed: list[int] = []
    monkeypatch.setattr(os, "fdatasync", flushed.append)

    make().save_state()

    assert len(flushed) == 1


def test_disk_that_cannot_be_flushed_is_not_saved(
    make: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(_fd: int) -> None:
        raise OSError(errno.EIO, "Input/output error")

    monkeypatch.setattr(os, "fdatasync", fail)

    with pytest.raises(HostError, match=r"disk0: .*disk\.img cannot be flushed: Input/output"):
        make().save_state()


def test_file_that_was_written_since_is_refused_and_the_cure_works(make: Make, file: Path) -> None:
    """What the guest has in its caches does not fit to other content: it would destroy it."""
    data = make().save_state()
    before = file.stat()
    new = make()
    new.disk.write(0, b"x" * SECTOR)
    os.utime(file, ns=(0, before.st_mtime_ns + 1))

    with pytest.raises(BadState, match=r"last written at .* put that of then back") as caught:
        new.load_state(data)

    moment = re.findall(r"[-0-9]+T[:.0-9]+Z", str(caught.value))[1]
    assert os.system(f"touch -d {moment} {file}") == 0
    new.load_state(data)


def test_disk_of_another_size_is_refused(make: Make) -> None:
    data = make().save_state()
    saved = BLK.parse(data)
    saved.size += SECTOR

    with pytest.raises(BadState, match=rf"size {MIB + SECTOR}: the file has {MIB}"):
        make().load_state(BLK.build(saved))


def test_time_that_does_not_exist_is_told_all_the_same(make: Make) -> None:
    saved = BLK.parse(make().save_state())
    saved.changed = (1 << 64) - 1

    with pytest.raises(BadState, match="last written at"):
        make().load_state(BLK.build(saved))
