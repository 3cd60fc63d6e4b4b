"""/dev/kvm as a whole: what users read when it cannot be used, and what it answers when it can."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from minivmm.errors import HostError
from minivmm.kvm import abi, ioctl
from minivmm.kvm import system as system_module
from minivmm.kvm.hypervisor import Hypervisor
from minivmm.kvm.ioctl import Ioctl
from minivmm.kvm.system import System


def test_a_missing_device_names_the_modules_and_the_lab(tmp_path: Path) -> None:
    with pytest.raises(HostError, match=r"cannot be opened \(No such.*kvm_intel.*--accel lab"):
        System(str(tmp_path / "kvm"))


def test_no_permission_names_the_group_and_chmod(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object) -> int:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(os, "open", refuse)

    with pytest.raises(HostError, match=r"/dev/kvm may not.*usermod -aG kvm.*chmod a\+rw"):
        System()


def test_another_device_is_refused() -> None:
    with pytest.raises(HostError, match="/dev/null is not a KVM device"):
        System("/dev/null")


def answer(monkeypatch: pytest.MonkeyPatch, answers: dict[Ioctl, Callable[[Any], int]]) -> None:
    """Have /dev/null answer these requests."""

    def call(_fd: int, request: Ioctl, argument: Any = 0, *, to: str) -> int:
        return answers[request](argument)

    monkeypatch.setattr(system_module, "call", call)


def test_another_api_version_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    answer(monkeypatch, {Ioctl.GET_API_VERSION: lambda _: 11})

    with pytest.raises(HostError, match="API version 11, minivmm needs 12"):
        System("/dev/null")


def test_a_missing_capability_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    lacking = {abi.Cap.IRQFD, abi.Cap.IMMEDIATE_EXIT}
    answer(
        monkeypatch,
        {
            Ioctl.GET_API_VERSION: lambda _: 12,
            Ioctl.CHECK_EXTENSION: lambda cap: int(cap not in lacking),
        },
    )

    with pytest.raises(HostError, match="lacks KVM_CAP_IRQFD, KVM_CAP_IMMEDIATE_EXIT: use a newer"):
        System("/dev/null")


def test_a_refused_device_is_closed_again() -> None:
    before = len(list(Path("/proc/self/fd").iterdir()))

    with pytest.raises(HostError):
        System("/dev/null")

    assert len(list(Path("/proc/self/fd").iterdir())) == before


def test_an_ioctl_error_says_what_was_tried_and_keeps_errno() -> None:
    with (
        Path("/dev/null").open() as null,
        pytest.raises(HostError, match="cannot try it: KVM_RUN failed: Inappropriate") as caught,
    ):
        ioctl.call(null.fileno(), Ioctl.RUN, to="try it")

    assert isinstance(caught.value.__cause__, OSError)
    assert caught.value.__cause__.errno == 25


@pytest.mark.kvm
def test_the_real_device_has_the_hypervisors_face(system: System) -> None:
    face: Hypervisor = system

    assert face.check(abi.Cap.IRQCHIP) == 1
    assert face.check(abi.Cap.NR_MEMSLOTS) >= 32


@pytest.mark.kvm
def test_supported_cpuid_has_the_kvm_signature(system: System) -> None:
    leaves = {leaf.function: leaf for leaf in system.supported_cpuid()}
    signature = leaves[0x4000_0000]

    text = b"".join(r.to_bytes(4, "little") for r in (signature.ebx, signature.ecx, signature.edx))

    assert text == b"KVMKVMKVM\0\0\0"
    assert 1 in leaves
    assert 0x8000_0008 in leaves


@pytest.mark.kvm
def test_a_list_longer_than_expected_is_asked_for_again(
    system: System, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = system.supported_cpuid()

    monkeypatch.setattr(system_module, "_FIRST_GUESS", 1)

    assert system.supported_cpuid() == whole


@pytest.mark.kvm
def test_many_vms_at_once_and_closed_in_any_order(system: System) -> None:
    vms = [system.create_vm() for _ in range(4)]

    for vm in reversed(vms):
        vm.create_vcpu(0)
        vm.close()


@pytest.mark.kvm
def test_a_second_cpu_of_the_same_number_is_an_error(system: System) -> None:
    vm = system.create_vm()
    vm.create_vcpu(0)

    with pytest.raises(HostError, match="cannot create cpu0: KVM_CREATE_VCPU failed"):
        vm.create_vcpu(0)
    vm.close()
