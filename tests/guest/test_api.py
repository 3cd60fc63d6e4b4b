"""The Python interface with real guests, in this process."""

from __future__ import annotations

import asyncio
import time
from pathlib import Path

import pytest

import minivmm
from minivmm.errors import GuestFailure
from minivmm.runtime import running
from minivmm.units import GIB, MIB

State = minivmm.ResizeState


@pytest.mark.parametrize("kernel", ["6.12"])  # it is about our side
def test_a_machine_from_its_start_to_its_end(kernel: str, tmp_path: Path) -> None:
    devices = [minivmm.VirtioMem("4G", block_size="2M"), minivmm.VirtioMem("192M", id="odd")]
    with minivmm.boot(kernel, memory="512M", devices=devices) as vm:
        device = vm.mem["vmem0"]
        assert vm.kernel_release is not None
        assert vm.kernel_release.startswith(f"{kernel}.")
        done = vm.run("cat; echo err >&2; exit 3", input="text")
        assert (done.status, done.stdout, done.stderr) == (3, "text", "err\n")

        with vm.trace.follow("vmem0") as seen:
            resize = device.resize("1G")
            event = seen.wait_for("vmem0:answer", timeout=60)
            assert resize.wait().check().plugged == GIB
        assert (event.fields["type"], event.fields["answer"]) == ("PLUG", "ACK")
        assert device.why().kind == "done"
        vm.snapshot(tmp_path / "grown")
        booted = vm.machine.stats.milestones["ready"]

        refused = device.resize("3M").wait()
        assert (refused.state, refused.plugged) == (State.REFUSED, GIB)

        # One whole memory block of Linux fits; no waiting helps the rest, so wait says so early.
        partial = vm.mem["odd"].resize("192M").wait(timeout=240)
        assert (partial.state, partial.plugged) == (State.PARTIAL, 128 * MIB)
        assert partial.diagnosis is not None
        assert partial.diagnosis.kind == "no-whole-block"
        assert partial.seconds < 120

        vm.console.send("echo $((6*7)) is it\n")
        vm.console.expect("42 is it", timeout=60)

        vm.run("rmmod virtio_mem", check=True)
        stalled = device.resize(0).wait(timeout=60)
        assert stalled.state is State.STALLED

        vm.reboot()
        assert device.resize(0).wait().done
        assert [entry.name for entry in running()] == [vm.name]

        with pytest.raises(GuestFailure, match="guest powered off"):
            vm.run("poweroff -f")
        assert vm.wait_ended().reason == "guest powered off"
    assert running() == []

    began = time.monotonic()
    with minivmm.boot(restore=tmp_path / "grown") as again:
        restored = time.monotonic() - began
        print(f"{kernel}: ready after {booted:.1f} s, restored after {restored:.2f} s")
        assert restored < booted / 5
        assert again.run("uname -r", check=True).stdout.startswith(kernel)
        assert again.mem["vmem0"].resize("256M").wait().done


def test_two_machines_at_once_from_asyncio() -> None:
    async def main() -> list[str]:
        async with (
            minivmm.aio.boot(memory="256M", devices=["virtio-mem-pci,size=1G"]) as one,
            minivmm.aio.boot(memory="256M", sockets=False) as two,
        ):
            assert (await one.mem["vmem0"].resize("128M").wait()).done
            done = await asyncio.gather(one.run("echo one"), two.run("echo two"))
            return [each.stdout for each in done]

    assert asyncio.run(main()) == ["one\n", "two\n"]
