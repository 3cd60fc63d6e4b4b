"""accel.probe: a verdict on this host's /dev/kvm with reason and cure; it never raises."""

from __future__ import annotations

from pathlib import Path

import pytest

from minivmm import accel
from minivmm.errors import HostError
from minivmm.kvm.abi import Cap


class FakeDevice:
    """What /dev/kvm says; capabilities in `lacking` are not there."""

    lacking: frozenset[int] = frozenset()
    failure: HostError | None = None
    open_devices = 0

    def __init__(self) -> None:
        FakeDevice.open_devices += 1

    def check(self, capability: int) -> int:
        if self.failure:
            raise self.failure
        return 0 if capability in self.lacking else 1

    def close(self) -> None:
        FakeDevice.open_devices -= 1


@pytest.fixture
def host(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A host with a complete KVM on a CPU with SVM; nothing may stay open."""
    (tmp_path / "cpuinfo").write_text("processor : 0\nflags : fpu sse svm\n")
    monkeypatch.setattr(accel, "System", FakeDevice)
    monkeypatch.setattr(accel, "PVM_MODULE", tmp_path / "kvm_pvm")
    monkeypatch.setattr(accel, "CPUINFO", tmp_path / "cpuinfo")
    monkeypatch.setattr(FakeDevice, "lacking", frozenset())
    monkeypatch.setattr(FakeDevice, "failure", None)
    monkeypatch.setattr(FakeDevice, "open_devices", 0)
    return tmp_path


def assert_unusable(found: accel.Accel, text: str) -> None:
    assert not found.usable
    assert text in found.reason
    assert "\n" not in found.reason
    assert found.cure == "use --accel lab"
    assert FakeDevice.open_devices == 0


@pytest.mark.parametrize("flags", ["vmx", "svm"])
def test_a_usual_host_can(host: Path, flags: str) -> None:
    (host / "cpuinfo").write_text(f"flags\t: fpu {flags} sse\n")

    found = accel.probe()

    assert found.usable
    assert found.cure is None
    assert found.details["irqfd"] == 1
    assert FakeDevice.open_devices == 0


def test_no_device(host: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def missing() -> None:
        raise HostError("/dev/kvm does not exist")

    monkeypatch.setattr(accel, "System", missing)

    assert_unusable(accel.probe(), "/dev/kvm does not exist")


def test_a_device_that_fails_when_asked(host: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(FakeDevice, "failure", HostError("cannot ask for a capability"))

    assert_unusable(accel.probe(), "cannot ask for a capability")


def test_what_is_missing_is_named(host: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(FakeDevice, "lacking", frozenset({Cap.IRQFD, Cap.IOEVENTFD}))

    found = accel.probe()

    assert_unusable(found, "irqfd, ioeventfd")
    assert found.details["irqfd"] == 0


def test_pvm_without_hardware_virtualization_cannot(host: Path) -> None:
    (host / "kvm_pvm").mkdir()
    (host / "cpuinfo").write_text("flags : fpu sse novmx\n")

    assert_unusable(accel.probe(), "kvm_pvm")


def test_pvm_beside_hardware_virtualization_can(host: Path) -> None:
    (host / "kvm_pvm").mkdir()

    assert accel.probe().usable


def test_pvm_where_the_cpu_cannot_be_read(host: Path) -> None:
    (host / "kvm_pvm").mkdir()
    (host / "cpuinfo").unlink()

    assert_unusable(accel.probe(), "kvm_pvm")


def test_probing_the_real_host_never_raises() -> None:
    found = accel.probe()

    assert found.reason
    assert found.usable == (found.cure is None)
