"""A machine with a device of the host, on a fake KVM and a fake VFIO."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest

from minivmm.control import hmp
from minivmm.control.face import Context
from minivmm.control.pci_commands import query_pci
from minivmm.errors import HostError, UsageError
from minivmm.machine_spec import MachineSpec, parse_device, spec_from_json, spec_to_json
from minivmm.spec import pci
from minivmm.spec.platform import pci_gsi
from minivmm.testing.fake_vfio import FakeHost
from minivmm.testing.fake_vfio_device import FakePciDevice
from minivmm.testing.pci_driver import PciDriver
from minivmm.testing.vfio_bench import MEMORY_AND_MASTER, MSIX_AT, a_device
from minivmm.units import MIB
from minivmm.vfio import host as vfio_host
from minivmm.vfio import ioctl, place
from minivmm.vfio.abi import Irq

NAME = "0000:01:00.0"
RAM = 64 * MIB


@pytest.fixture
def host(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> FakeHost:
    """A host with one device."""
    made = FakeHost(tmp_path)
    made.add(a_device())
    monkeypatch.setattr(ioctl, "raw", made.ioctl)
    monkeypatch.setattr(place, "SYSFS", made.sysfs)
    monkeypatch.setattr(vfio_host, "DEV", made.dev)
    return made


@pytest.fixture
def device(host: FakeHost) -> FakePciDevice:
    """The host's device."""
    return host.devices[NAME]


@pytest.fixture
def passing(host: FakeHost, make_rig: Any) -> Any:
    """A machine that has it."""
    return make_rig(memory=RAM, devices=(parse_device(f"vfio-pci,host={NAME}"),))


def driver(rig: Any) -> PciDriver:
    function = rig.machine.board.passed_on[0]
    return PciDriver(rig.machine.board.mmio, function.slot)


def test_kvm_knows_of_the_group(passing: Any) -> None:
    assert len(passing.vm.vfio_files) == 1


def test_ram_is_mapped_before_the_guest_runs(passing: Any, host: FakeHost) -> None:
    (mapping,) = host.container.mappings

    assert (mapping.iova, mapping.size) == (0, RAM)


def test_direct_parts_of_a_bar_are_memslots_while_it_is_decoded(passing: Any) -> None:
    before = len(passing.vm.slots)
    driver(passing).write_pci(pci.COMMAND, 2, MEMORY_AND_MASTER)
    sizes = sorted(slot.size for slot in passing.vm.slots.values())

    assert sizes == [0x1000, 0x2000, 0x4000, RAM]
    driver(passing).write_pci(pci.COMMAND, 2, 0)
    assert len(passing.vm.slots) == before


def test_pin_is_an_irqfd_that_kvm_resamples(passing: Any, device: FakePciDevice) -> None:
    gsi = pci_gsi(passing.machine.board.passed_on[0].slot)

    assert (device.triggers[Irq.INTX, 0], gsi) in passing.vm.irqfds
    assert passing.vm.resamplers[gsi] == device.unmask


def test_messages_go_from_the_device_to_kvm(passing: Any, device: FakePciDevice) -> None:
    guest = driver(passing)
    guest.write_pci(pci.COMMAND, 2, MEMORY_AND_MASTER)
    guest.write_pci(MSIX_AT + 2, 2, pci.MsixControl.ENABLE)
    function = passing.machine.board.passed_on[0]
    entry = next(bar.mapped for bar in function.bars if bar.index == 0) + 0x2000 + 16
    for offset, value in ((0, 0xFEE0_0000), (4, 0), (8, 0x51), (12, 0)):
        passing.machine.board.mmio.write(entry + offset, 4, value)

    fd = device.triggers[Irq.MSIX, 1]
    (gsi,) = [gsi for known, gsi in passing.vm.irqfds if known == fd]
    assert passing.vm.routes[gsi] == (0xFEE0_0000, 0x51)

    passing.machine.board.mmio.write(entry + 12, 4, 1)
    assert not [gsi for known, gsi in passing.vm.irqfds if known == fd]


def test_reset_of_the_machine_resets_the_device(passing: Any, device: FakePciDevice) -> None:
    passing.start()
    passing.locked(passing.machine.request_reset)
    passing.wait_for_event("RESET")

    assert device.resets == ["function"]
    assert device.peek(7, pci.COMMAND, 2) == 0


def test_dma_ends_before_memory_goes(passing: Any, device: FakePciDevice) -> None:
    """virtio-mem unplugs in its system_reset: a device must not write into that any more."""
    board = passing.machine.board
    driver(passing).write_pci(pci.COMMAND, 2, MEMORY_AND_MASTER)
    seen: list[int] = []
    board.functions[0].system_reset = lambda: seen.append(device.peek(7, pci.COMMAND, 2))
    passing.locked(board.system_reset)

    assert seen == [0]


def test_query_pci_and_qtree_name_it(passing: Any) -> None:
    context = Context(passing.machine)
    listed = query_pci(context)[0]["devices"][-1]

    assert listed["qdev_id"] == "vfio0"
    assert any('dev: vfio-pci, id "vfio0"' in line for line in hmp.execute(context, "info qtree"))


def test_warnings_reach_the_user(passing: Any, device: FakePciDevice) -> None:
    said: list[str] = []
    passing.machine.on_warning.append(said.append)
    device.interrupt(Irq.REQUEST)
    passing.thread.settle()

    assert said == [f"vfio0 ({NAME}): the host takes it away: for the guest, it is gone"]


def test_machine_is_reset_after_its_device_went(passing: Any, device: FakePciDevice) -> None:
    passing.start()
    device.interrupt(Irq.REQUEST)
    passing.thread.settle()
    passing.locked(passing.machine.request_reset)
    passing.wait_for_event("RESET")

    assert passing.machine.state == "running"
    assert device.resets == ["function"]  # when it went, not again


def test_end_gives_everything_back(passing: Any) -> None:
    (function,) = passing.machine.board.passed_on
    (group,) = passing.vm.vfio_files
    passing.close()

    assert function._device.fd == -1
    with pytest.raises(OSError, match="Bad file descriptor"):
        os.fstat(group)


def test_device_that_is_missing_leaves_nothing_behind(host: FakeHost, make_rig: Any) -> None:
    devices = (parse_device("vfio-pci,host=02:00.0"),)

    with pytest.raises(HostError, match=r"vfio0: this host has no PCI device 0000:02:00\.0"):
        make_rig(memory=RAM, devices=devices)


def test_spec_survives_json() -> None:
    spec = MachineSpec(devices=(parse_device("vfio-pci,host=01:00.0,iommufd=off"),))

    assert spec_from_json(spec_to_json(spec)) == spec


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("vfio-pci", "vfio0: a device is named by host= or by sysfsdev=: give one of the two"),
        ("vfio-pci,host=01:00.0,sysfsdev=/x", "give one of the two"),
        ("vfio-pci,host=1", "vfio0: '1' is no PCI address: write it as `lspci -D` does"),
        ("vfio-pci,hots=01:00.0", "did you mean host"),
    ],
)
def test_options_that_make_no_sense_are_refused(text: str, words: str) -> None:
    with pytest.raises(UsageError) as raised:
        parse_device(text)

    assert words in str(raised.value)


def test_devices_of_a_machine_are_opened_the_same_way() -> None:
    devices = tuple(
        parse_device(f"vfio-pci,id=d{n},host=0{n}:00.0,iommufd={way}")
        for n, way in ((1, "on"), (2, "off"))
    )
    with pytest.raises(UsageError, match="give all of them iommufd=on, or all iommufd=off"):
        MachineSpec(devices=devices)


def test_same_device_twice_is_refused() -> None:
    devices = tuple(parse_device(f"vfio-pci,id=d{n},host=01:00.0") for n in (1, 2))
    with pytest.raises(UsageError, match="d1 and d2 are the same device"):
        MachineSpec(devices=devices)
