"""The benchmark of vCPUs that exit at once: on whatever /dev/kvm there is, with few exits."""

from __future__ import annotations

import pytest

from benchmarks import vcpus
from minivmm.accel import open_system
from minivmm.errors import HostError


@pytest.mark.kvm
@pytest.mark.parametrize("count", [1, 2, 4])
def test_all_exits_are_served(monkeypatch: pytest.MonkeyPatch, count: int) -> None:
    monkeypatch.setattr(vcpus, "EXITS", 80)
    try:
        system = open_system()
    except HostError as error:
        pytest.skip(f"no usable KVM here: {error}")
    try:
        assert vcpus.run(system, count) > 0
    finally:
        system.close()


def test_each_vcpu_is_compared_with_one_alone() -> None:
    assert vcpus.CPUS[0] == 1
    assert all(vcpus.EXITS % count == 0 for count in vcpus.CPUS)
