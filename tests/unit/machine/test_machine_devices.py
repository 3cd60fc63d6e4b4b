"""A machine with disks, a balloon and an entropy device: specs, wiring, events, and the end."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from minivmm.background import Background
from minivmm.devices.virtio_balloon.spec import VirtioBalloonSpec
from minivmm.devices.virtio_blk.device import VirtioBlk
from minivmm.devices.virtio_blk.spec import VirtioBlkSpec
from minivmm.devices.virtio_rng.spec import VirtioRngSpec
from minivmm.errors import HostError, UsageError
from minivmm.machine_spec import MachineSpec, parse_device, spec_from_json, spec_to_json
from minivmm.spec.virtio_balloon import BalloonConfig
from minivmm.units import MIB

MakeRig = Callable[..., Any]


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "disk.img"
    path.write_bytes(bytes(MIB))
    return path


def test_names_of_devices_that_were_given_none() -> None:
    texts = [
        "virtio-rng-pci",
        "virtio-blk-pci,file=a",
        "virtio-blk-pci,file=b",
        "virtio-mem-pci,size=1G",
    ]
    ids: tuple[str, ...] = ()
    for text in texts:
        ids += (parse_device(text, ids).id,)

    assert ids == ("rng0", "disk0", "disk1", "vmem0")


def test_devices_survive_json(file: Path) -> None:
    devices = (
        VirtioBlkSpec(file=str(file), readonly=True, serial="s", packed=True),
        VirtioBalloonSpec(deflate_on_oom=True, guest_stats_polling_interval=3),
        VirtioRngSpec(max_bytes=64, event_idx=False),
    )

    assert spec_from_json(spec_to_json(MachineSpec(devices=devices))).devices == devices


def test_a_second_balloon_is_refused() -> None:
    with pytest.raises(UsageError, match="b0 and b1 are balloons: give a machine one"):
        MachineSpec(devices=(VirtioBalloonSpec(id="b0"), VirtioBalloonSpec(id="b1")))


def test_a_disk_without_a_file_is_refused() -> None:
    with pytest.raises(UsageError, match="virtio-blk-pci: file= is required"):
        parse_device("virtio-blk-pci")


def test_devices_are_wired_and_the_file_is_free_after_the_end(
    make_rig: MakeRig, file: Path
) -> None:
    disk = VirtioBlkSpec(file=str(file))
    rig = make_rig(devices=(disk, VirtioBalloonSpec(), VirtioRngSpec()))
    names = [function.device.identifier for function in rig.machine.board.functions]
    models = [function.device for function in rig.machine.board.functions]
    with pytest.raises(HostError, match="in use"):
        disk.check_files()

    rig.thread.run(rig.machine.close)

    assert names == ["console0", "disk0", "balloon0", "rng0"]
    assert all(isinstance(model.errands, Background) for model in models)
    assert any(isinstance(model, VirtioBlk) for model in models)
    disk.check_files()


def test_a_machine_that_cannot_be_built_leaves_no_disk_open(
    make_rig: MakeRig, file: Path, tmp_path: Path
) -> None:
    disk = VirtioBlkSpec(file=str(file))
    with pytest.raises(HostError, match=r"disk1: disk .* does not exist"):
        make_rig(devices=(disk, VirtioBlkSpec(id="disk1", file=str(tmp_path / "no"))))

    disk.check_files()


def test_what_the_balloon_leaves_is_told_as_an_event(make_rig: MakeRig) -> None:
    rig = make_rig(devices=(VirtioBalloonSpec(),))
    at = BalloonConfig.OFFSETS["actual"]

    with rig.loop.lock:
        rig.machine.balloon.write_config(at, (16 * 256).to_bytes(4, "little"))

    assert ("BALLOON_CHANGE", {"actual": 48 * MIB}) in rig.events


def test_ports_that_the_guest_opens_are_told_as_events(make_rig: MakeRig) -> None:
    rig = make_rig()
    console, agent = rig.machine.board.console.ports[:2]

    with rig.loop.lock:
        for port in (console, agent):
            port.set_guest_open(True)
        agent.set_guest_open(False)

    told = [data for name, data in rig.events if name == "VSERPORT_CHANGE"]
    assert told == [{"id": agent.name, "open": True}, {"id": agent.name, "open": False}]


def test_the_console_of_the_shell(make_rig: MakeRig) -> None:
    assert MachineSpec().keyboard == "hvc0"
    assert MachineSpec(initrd="mine").keyboard == "ttyS0"
    assert MachineSpec(initrd="mine", console="hvc0").keyboard == "hvc0"
    rig = make_rig()
    with rig.loop.lock:
        rig.machine.board.terminal.on_output(b"hello")

    assert bytes(rig.output) == b"hello"


def test_the_console_has_the_switches_that_it_was_given(make_rig: MakeRig) -> None:
    spec = parse_device("virtio-serial-pci,packed=on,vectors=0")
    rig = make_rig(devices=(VirtioRngSpec(), spec))

    assert spec_from_json(spec_to_json(MachineSpec(devices=(spec,)))).devices == (spec,)
    board = rig.machine.board
    assert [function.device.identifier for function in board.functions] == ["console0", "rng0"]
    assert board.console.options == spec


def test_a_second_console_is_refused() -> None:
    with pytest.raises(UsageError, match="console1: a machine has one console"):
        parse_device("virtio-serial-pci", ("console0",))
