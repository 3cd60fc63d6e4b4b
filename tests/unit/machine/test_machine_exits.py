"""Exits of a guest reach the device at their address, and its answer reaches the guest."""

from __future__ import annotations

from typing import Any

import pytest

from minivmm.spec.platform import ECAM_BASE, MMIO32_BASE, PCI_CONFIG_PORT, SERIAL_PORT

LSR = SERIAL_PORT + 5
SCRATCH = SERIAL_PORT + 7
NOWHERE_PORT = 0x2E8
HOST_BRIDGE_ID = 0x0008_1B36
VIRTIO_CONSOLE_ID = 0x1043_1AF4


def test_port_output_reaches_the_console(rig: Any) -> None:
    rig.vcpus[0].script_out(SERIAL_PORT, b"A")

    rig.start()

    assert rig.vcpus[0].wait_idle()
    assert bytes(rig.output) == b"A"


def test_string_output_is_every_item_in_order(rig: Any) -> None:
    rig.vcpus[0].script_out(SERIAL_PORT, b"Hello, world")

    rig.start()

    assert rig.vcpus[0].wait_idle()
    assert bytes(rig.output) == b"Hello, world"
    assert rig.machine.stats.exits["io out"] == 1


def test_port_input_is_answered(rig: Any) -> None:
    rig.vcpus[0].script_out(SCRATCH, b"\x5a")
    scratch = rig.vcpus[0].script_in(SCRATCH)
    empty = rig.vcpus[0].script_in(LSR)

    rig.start()

    assert rig.vcpus[0].wait_idle()
    assert scratch.value == 0x5A
    assert empty.value == 0x60


def test_string_input_reads_the_port_once_per_item(rig: Any) -> None:
    rig.vcpus[0].script_out(SERIAL_PORT + 2, b"\x01")  # FIFO on
    rig.vcpus[0].script_out(SERIAL_PORT + 1, b"\x01")  # a reader with interrupts
    typed = rig.vcpus[0].script_in(SERIAL_PORT, count=3)
    rig.machine.board.serial.receive(b"xyz")

    rig.start()

    assert rig.vcpus[0].wait_idle()
    assert typed.value == int.from_bytes(b"xyz", "little")


@pytest.mark.parametrize("size", [1, 2, 4])
def test_a_port_without_a_device_reads_as_ones(rig: Any, size: int) -> None:
    rig.vcpus[0].script_out(NOWHERE_PORT, bytes(size), size=size)
    answer = rig.vcpus[0].script_in(NOWHERE_PORT, size=size)

    rig.start()

    assert rig.vcpus[0].wait_idle()
    assert answer.value == (1 << 8 * size) - 1


def test_wide_port_accesses_configure_pci(rig: Any) -> None:
    address = 1 << 31 | 1 << 11  # enable, slot 1
    rig.vcpus[0].script_out(PCI_CONFIG_PORT, address.to_bytes(4, "little"), size=4)
    whole = rig.vcpus[0].script_in(PCI_CONFIG_PORT + 4, size=4)
    half = rig.vcpus[0].script_in(PCI_CONFIG_PORT + 6, size=2)

    rig.start()

    assert rig.vcpus[0].wait_idle()
    assert whole.value == VIRTIO_CONSOLE_ID
    assert half.value == VIRTIO_CONSOLE_ID >> 16


def test_memory_reads_and_writes_reach_pci(rig: Any) -> None:
    command = ECAM_BASE + (1 << 15) + 4
    identity = rig.vcpus[0].script_mmio_read(ECAM_BASE, 4)
    rig.vcpus[0].script_mmio_write(command, 2, 2)
    changed = rig.vcpus[0].script_mmio_read(command, 2)

    rig.start()

    assert rig.vcpus[0].wait_idle()
    assert identity.value == HOST_BRIDGE_ID
    assert changed.value == 2


@pytest.mark.parametrize("size", [1, 2, 4, 8])
def test_memory_without_a_device_reads_as_ones(rig: Any, size: int) -> None:
    rig.vcpus[0].script_mmio_write(MMIO32_BASE, size, 0)
    answer = rig.vcpus[0].script_mmio_read(MMIO32_BASE, size)

    rig.start()

    assert rig.vcpus[0].wait_idle()
    assert answer.value == (1 << 8 * size) - 1


def test_all_vcpus_are_served(rig4: Any) -> None:
    for vcpu in rig4.vcpus:
        for _ in range(50):
            vcpu.script_out(SERIAL_PORT, bytes([ord("0") + vcpu.index]))

    rig4.start()

    assert all(vcpu.wait_idle() for vcpu in rig4.vcpus)
    assert sorted(rig4.output) == sorted(b"0123" * 50)
    assert rig4.machine.stats.exits["io out"] == 200


def test_exits_are_served_with_the_lock_held(rig: Any) -> None:
    held: list[bool] = []

    def look(data: bytes) -> None:
        held.append(rig.loop.lock._is_owned())

    rig.machine.board.serial._output = look
    rig.vcpus[0].script_out(SERIAL_PORT, b"x")

    rig.start()

    assert rig.vcpus[0].wait_idle()
    assert held == [True]


def test_exits_are_counted_by_place(rig: Any) -> None:
    rig.vcpus[0].script_out(SCRATCH, b"x")
    rig.vcpus[0].script_in(SCRATCH)
    rig.vcpus[0].script_mmio_read(ECAM_BASE, 4)
    rig.vcpus[0].script_mmio_write(ECAM_BASE, 4, 0)

    rig.start()

    assert rig.vcpus[0].wait_idle()
    assert dict(rig.machine.stats.places) == {
        ("io out", SCRATCH): 1,
        ("io in", SCRATCH): 1,
        ("mmio read", ECAM_BASE): 1,
        ("mmio write", ECAM_BASE): 1,
    }


def test_milestones_of_a_boot(rig: Any) -> None:
    assert rig.machine.stats.milestones == {}
    rig.vcpus[0].script_out(SERIAL_PORT, b"minivmm: init of 6.12\r\n")

    rig.start()

    assert rig.vcpus[0].wait_idle()
    milestones = rig.machine.stats.milestones
    assert list(milestones) == ["first-instruction", "init"]
    assert milestones["first-instruction"] <= milestones["init"]
