"""A guest of minivmm's own, in this process, by its Python interface."""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import Any

from minivmm.api import Device, VirtioBalloon, VirtioMem, Vm, boot
from minivmm.errors import GuestFailure
from minivmm.matrix.guest import (
    COMMAND_TIME,
    DEVICE_ID,
    PATIENCE,
    REGION,
    TAIL,
    BootCost,
    Guest,
    HostUse,
    Ran,
    Setup,
)
from minivmm.matrix.images import POLICY, Files
from minivmm.matrix.processes import exits_of, process_use
from minivmm.options import parse_pairs


def device(options: Sequence[str], region: int = REGION) -> Device:
    """The virtio-mem device of `region` bytes with `options` ("packed=on"). Raises UsageError."""
    _, values = parse_pairs(",".join(["", *options]))
    plain = VirtioMem(region, id=DEVICE_ID, requested_size=0)
    return Device("virtio-mem-pci", **{**plain.options, **values})  # type: ignore[arg-type]


class OurGuest(Guest):
    """A guest of `setup` on minivmm, ready for commands; raises what minivmm.boot does."""

    vmm = "minivmm"

    def __init__(
        self, files: Files, setup: Setup, options: Sequence[str], patience: float = PATIENCE
    ) -> None:
        devices = [device(options, setup.region)] if setup.device else []
        self._setup = setup
        self.vm: Vm = boot(
            files.kernel,
            initrd=files.initrd,
            console="hvc0",
            memory=setup.memory,
            cpus=setup.cpus,
            online=POLICY,
            append=setup.append,
            devices=[*devices, VirtioBalloon()] if setup.balloon else devices,
            shell=False,
            sockets=False,
            timeout=patience,
        )
        agent = self.vm.engine.servers.agent
        self._starts, self._seen = 1, 1
        with self.vm.lock:
            agent.on_ready.append(self._note_start)
        milestones = self.vm.machine.stats.milestones
        self.boot = BootCost(milestones["ready"], exits_of(os.getpid()))

    def close(self) -> None:
        """End it."""
        self.vm.close()

    def run(self, command: str, timeout: float = COMMAND_TIME) -> Ran:
        """As Guest.run."""
        done = self.vm.run(command, timeout=timeout)
        return Ran(done.status, done.stdout, done.stderr)

    @property
    def requested(self) -> int:
        """As Guest.requested."""
        return self.vm.mem[DEVICE_ID].requested

    @property
    def plugged(self) -> int:
        """As Guest.plugged."""
        return self.vm.mem[DEVICE_ID].plugged

    def qmp(self, command: str, **arguments: object) -> Any:
        """As Guest.qmp."""
        return self.vm.qmp(command, **arguments)

    def wait_ready(self, timeout: float = PATIENCE) -> None:
        """As Guest.wait_ready."""

        def started() -> bool:
            if self.vm.outcome is not None:
                raise GuestFailure(self.vm.outcome.reason)
            return self._starts > self._seen

        self.wait_until(started, "agent of a guest that has started anew", timeout)
        self._seen = self._starts

    def host_use(self) -> HostUse:
        """As Guest.host_use; what is held is counted page by page."""
        rows = self.qmp("x-minivmm-audit")
        held = sum(row["resident-unplugged"] for row in rows)
        found = process_use(os.getpid())
        return HostUse(found.fds, found.threads, found.resident, held)

    def console(self) -> str:
        """As Guest.console."""
        return "\n".join(self.vm.console.text.splitlines()[-TAIL:])

    def _note_start(self) -> None:
        self._starts += 1
