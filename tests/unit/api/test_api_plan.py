"""Options of boot() and devices become the machine that the command line would make of them."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

import minivmm
from minivmm.api.plan import Device, make_plan
from minivmm.devices.virtio_mem.spec import VirtioMemSpec
from minivmm.errors import UsageError
from minivmm.machine_spec import MachineSpec, parse_device
from minivmm.units import GIB, MIB


def test_options_are_those_of_the_command_line() -> None:
    plan = make_plan(
        Path("/k"),
        {
            "memory": "1G",
            "cpus": 2,
            "append": "quiet",
            "phys_bits": 40,
            "numa": ["node,cpus=0-1,mem=1G"],
            "shell": False,
            "timeout": 5.0,
        },
    )

    assert plan.spec == MachineSpec(
        kernel="/k", memory=GIB, cpus=2, append=("quiet",), phys_bits=40, numa=plan.spec.numa
    )
    assert len(plan.spec.numa) == 1
    assert (plan.shell, plan.sockets, plan.ready, plan.timeout) == (False, True, True, 5.0)


def test_devices_get_free_names_and_python_spellings() -> None:
    wanted: list[Device | str] = [
        minivmm.VirtioMem("4G", requested_size=64 * MIB, packed=True, event_idx=False),
        "virtio-mem-pci,size=1G",
        minivmm.VirtioMem(GIB, id="mine"),
        minivmm.VirtioRng(),
    ]

    devices = make_plan(None, {"devices": wanted}).spec.devices

    assert [device.id for device in devices] == ["vmem0", "vmem1", "mine", "rng0"]
    text = "virtio-mem-pci,size=4G,requested-size=64M,packed=on,event_idx=off"
    assert devices[0] == parse_device(text)
    assert isinstance(devices[0], VirtioMemSpec)


@pytest.mark.parametrize(
    ("make", "said"),
    [
        (lambda: minivmm.VirtioMem("4G", block_siz="2M"), "did you mean block-size"),
        (lambda: minivmm.VirtioMem("3M"), "not a multiple of block-size"),
        (lambda: Device("virtio-mem"), "did you mean virtio-mem-pci"),
        (lambda: make_plan(None, {"memory": "1GB"}), "boot: memory: size '1GB' is ambiguous"),
        (lambda: make_plan(None, {"memroy": "1G"}), "did you mean memory"),  # type: ignore[typeddict-unknown-key]
    ],
)
def test_nonsense_is_refused_at_once(make: object, said: str) -> None:
    assert callable(make)
    with pytest.raises(UsageError, match=said):
        make()


def test_options_of_a_run_count_for_devices_that_have_them() -> None:
    options = {"block_size": "4M", "packed": "on"}

    memory = minivmm.VirtioMem("1G", block_size="2M").varied(options)
    random = minivmm.VirtioRng(max_bytes="1M").varied(options)

    assert memory.options == {"size": "1G", "block-size": "4M", "packed": "on"}
    assert random.options == {"max-bytes": "1M", "packed": "on"}


def test_importing_minivmm_loads_nothing_of_it() -> None:
    script = (
        "import sys, minivmm; before = set(sys.modules); assert callable(minivmm.boot);"
        "heavy = {'asyncio', 'construct', 'ctypes', 'json', 'minivmm.api'} & before;"
        "sys.exit(f'loaded: {heavy}' if heavy else 0)"
    )

    result = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True)

    assert result.returncode == 0, result.stderr


def test_the_package_boot_and_the_function_share_their_name() -> None:
    script = (
        "import minivmm.boot.numa as numa; from minivmm.boot import cpu; import minivmm;"
        "assert callable(minivmm.boot) and minivmm.boot.numa is numa and minivmm.boot.cpu is cpu"
    )

    result = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True)

    assert result.returncode == 0, result.stderr


def test_every_public_name_is_there() -> None:
    assert all(getattr(minivmm, name) is not None for name in minivmm.__all__)
    assert set(minivmm.__all__) <= set(dir(minivmm))
    with pytest.raises(AttributeError, match="no attribute 'bogus'"):
        minivmm.bogus  # noqa: B018
