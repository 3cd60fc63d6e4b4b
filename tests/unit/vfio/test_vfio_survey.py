"""What `minivmm doctor` finds out about passing devices on."""

from __future__ import annotations

from pathlib import Path

from minivmm.testing.fake_vfio import FakeHost
from minivmm.testing.fake_vfio_device import FakePciDevice
from minivmm.vfio.survey import Survey, survey


def test_devices_that_vfio_holds_are_named(tmp_path: Path) -> None:
    host = FakeHost(tmp_path, limit=None)
    host.add(FakePciDevice("0000:01:00.0"))
    host.add(FakePciDevice("0000:02:00.0"), group="8", driver="nvme")

    found = survey(host.sysfs, host.dev)

    assert found == Survey(2, ("0000:01:00.0",), ("group",))
    assert found.ok
    assert found.detail == "2 IOMMU groups; VFIO holds 0000:01:00.0; by group"


def test_host_without_an_iommu_is_told_where_it_is_switched_on(tmp_path: Path) -> None:
    found = survey(tmp_path, tmp_path)

    assert found == Survey(0, (), ())
    assert not found.ok
    assert found.detail == "no device is behind an IOMMU"
    assert "intel_iommu=on" in found.cure
