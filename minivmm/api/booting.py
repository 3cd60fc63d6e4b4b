"""boot(): from a plan to a machine that is ready, and what is said if it never is."""

from __future__ import annotations

import os
import shlex
import sys
from functools import partial
from pathlib import Path
from typing import Unpack

from minivmm.accel import open_system, probe
from minivmm.api import work
from minivmm.api.engine import Engine
from minivmm.api.plan import BootOptions, Plan, make_plan
from minivmm.api.vm import Vm
from minivmm.errors import HostError
from minivmm.guest_image import resolve
from minivmm.kvm.hypervisor import Hypervisor

TAIL = 40
"""Lines of the console that are shown with the error if a guest does not come up."""


def boot(kernel: str | Path | None = None, **options: Unpack[BootOptions]) -> Vm:
    """Boot a machine in this process, and wait until it runs commands.

    `kernel`: a file (bzImage, vmlinux), the release of a fetched one ("6.12"), or None for the
    newest fetched; the options are BootOptions. A context manager; without `with`, close it.
    With restore= it goes on from a snapshot (Vm.snapshot) instead, at once.
    Raises UsageError for what no machine can be, ImageError for a kernel that is none, HostError
    for what the host lacks, GuestFailure or WaitTimeout if the guest does not come up; those have
    the end of its console as a note.
    """
    plan = make_plan(kernel, options)
    engine = start(plan, open_host())
    return await_ready(engine, plan)


def open_host() -> Hypervisor:
    """/dev/kvm. Raises HostError if it cannot run stock kernels, and says how they run in the lab.

    The first machine of a process must be booted in its main thread.
    """
    found = probe()
    if not found.usable:
        raise HostError(f"{found.reason}: run this in the lab: {lab_command()}")
    try:
        return open_system()
    except ValueError:
        raise HostError(
            "the first machine of a process is booted in its main thread: Python sets signal"
            " handlers only there"
        ) from None


def lab_command() -> str:
    """What to type to have this program run in the lab."""
    if "PYTEST_CURRENT_TEST" in os.environ:
        return "pytest --minivmm-lab"
    words = sys.argv if sys.argv and Path(sys.argv[0]).is_file() else ["x.py"]
    return f"minivmm lab -- python {shlex.join(words)}"


def start(plan: Plan, system: Hypervisor) -> Engine:
    """The machine of `plan`, running; `system` is its own from here on."""
    resolved = partial(resolve, plan.spec, shell=plan.shell)
    try:
        # A restored guest needs none before it resets.
        image = resolved() if plan.restore is None else resolved
    except BaseException:
        system.close()
        raise
    return Engine(plan, image, system)


def await_ready(engine: Engine, plan: Plan) -> Vm:
    """Its face, once the guest is ready; a machine that does not come up is closed."""
    try:
        if plan.ready:
            engine.wait(work.ready(engine, plan.timeout))
    except BaseException as error:
        error.add_note(tail(engine))
        engine.close()
        raise
    return Vm(engine)


def tail(engine: Engine) -> str:
    """The end of the console, with a heading."""
    lines = engine.log.text.splitlines()[-TAIL:]
    return "\n".join(["last lines of the guest's console:", *lines] if lines else ["no console"])
