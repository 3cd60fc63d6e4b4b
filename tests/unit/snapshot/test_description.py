"""Whether one machine can go on from another's state: every field that the guest sees counts."""

from __future__ import annotations

import copy
import json
from collections.abc import Iterator
from typing import Any

import pytest

from minivmm.devices.virtio_mem.spec import VirtioMemSpec
from minivmm.loop import EventLoop
from minivmm.machine import Machine
from minivmm.machine_spec import MachineSpec
from minivmm.snapshot.machine import describe, differences
from minivmm.testing.fake_kvm import FakeSystem
from minivmm.testing.tiny_kernel import tiny_image
from minivmm.units import GIB, MIB

VMEM = VirtioMemSpec(size=GIB, block_size=2 * MIB)


def of(**options: Any) -> dict[str, object]:
    """The description of a machine with these options."""
    loop = EventLoop()
    chosen: dict[str, Any] = {"memory": 64 * MIB, "devices": (VMEM,)} | options
    machine = Machine(
        MachineSpec(**chosen),
        tiny_image(),
        FakeSystem(),
        loop,
        console=lambda data: None,
        empty=True,
    )
    try:
        return describe(machine)
    finally:
        machine.close()
        loop.asyncio.close()


@pytest.fixture(scope="module")
def usual() -> dict[str, object]:
    return of()


def test_equal_machines_fit(usual: dict[str, object]) -> None:
    assert differences(usual, of()) == []


def test_it_is_json(usual: dict[str, object]) -> None:
    assert json.loads(json.dumps(usual)) == usual


def test_what_the_guest_does_not_see_may_differ(usual: dict[str, object]) -> None:
    other = VirtioMemSpec(
        size=GIB, block_size=2 * MIB, requested_size=64 * MIB, thp="off", prealloc=True
    )

    assert differences(usual, of(name="other", devices=(other,), kernel="/elsewhere")) == []


@pytest.mark.parametrize(
    ("options", "field", "remedy"),
    [
        ({"memory": 128 * MIB}, "memory.0x0: saved 67108864, here 134217728", "the same -m"),
        ({"cpus": 2}, "cpus: saved 1, here 2", "the same -p"),
        ({"phys_bits": 40}, "layout.phys-bits: saved 48, here 40", "phys-bits"),
        ({"devices": ()}, "devices.0000:00:02.0: saved ", "the same --device"),
        (
            {"devices": (VirtioMemSpec(size=2 * GIB, block_size=2 * MIB),)},
            "devices.0000:00:02.0.size: saved 1073741824, here 2147483648",
            "the same --device",
        ),
        (
            {"devices": (VirtioMemSpec(size=GIB, block_size=4 * MIB),)},
            "devices.0000:00:02.0.block-size: saved 2097152, here 4194304",
            "the same --device",
        ),
        (
            {"devices": (VirtioMemSpec(id="other", size=GIB, block_size=2 * MIB),)},
            "devices.0000:00:02.0.id: saved vmem0, here other",
            "the same --device",
        ),
        (
            {"devices": (VirtioMemSpec(size=GIB, block_size=2 * MIB, packed=True),)},
            "devices.0000:00:02.0.features: saved 0x",
            "the same --device",
        ),
        (
            {"devices": (VirtioMemSpec(size=GIB, block_size=2 * MIB, vectors=0),)},
            "devices.0000:00:02.0.configuration: saved ",
            "the same --device",
        ),
    ],
)
def test_another_machine_is_told_by_its_field(
    usual: dict[str, object], options: dict[str, Any], field: str, remedy: str
) -> None:
    lines = differences(usual, of(**options))

    assert [line for line in lines if line.startswith(field) and remedy in line]
    assert not [line for line in lines if "\n" in line or len(line) > 400]


@pytest.fixture
def saved(usual: dict[str, object]) -> Any:
    return copy.deepcopy(usual)


def test_another_processor_is_told_by_leaf_and_register(usual: Any, saved: Any) -> None:
    saved["processor"]["cpuid"]["0x1/0"]["ecx"] = "0x1"

    (line,) = differences(saved, usual)

    assert line.startswith("processor.cpuid.0x1/0.ecx: saved 0x1, here 0x")
    assert "use a host with the same processor" in line


def test_more_msrs_here_are_no_harm_and_fewer_are(usual: Any, saved: Any) -> None:
    known = saved["processor"]["msrs"]
    saved["processor"]["msrs"] = known[:-1]
    assert differences(saved, usual) == []

    saved["processor"]["msrs"] = [*known, "0xdead"]

    assert differences(saved, usual)[0].startswith("processor.msrs: saved ")


@pytest.mark.parametrize(
    ("saved_khz", "khz", "scales", "fits"),
    [
        (2_000_000, 2_000_000, False, True),
        (2_000_000, 2_000_900, False, True),
        (2_000_000, 2_100_000, False, False),
        (2_000_000, 2_100_000, True, True),
        (0, 2_000_000, False, True),
        (2_000_000, 0, False, True),
        (-1, 2_000_000, True, False),
        ("2000000", 2_000_000, True, False),
    ],
)
def test_time_stamp_counters_must_be_about_as_fast(
    usual: Any, saved: Any, saved_khz: object, khz: int, scales: bool, fits: bool
) -> None:
    here = copy.deepcopy(usual)
    saved["processor"]["tsc"] = {"khz": saved_khz, "scales": False}
    here["processor"]["tsc"] = {"khz": khz, "scales": scales}

    assert (differences(saved, here) == []) == fits


def leaves(value: Any, path: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """Paths to all values that hold no others."""
    if isinstance(value, dict):
        for key, item in value.items():
            yield from leaves(item, (*path, key))
    else:
        yield path


def test_no_field_can_be_another_thing_or_missing_or_new(usual: Any) -> None:
    for *path, last in leaves(usual):
        if path[:2] == ["processor", "tsc"]:
            continue
        for odd in (None, [], {}, "\n\x1b[31m" * 1000, 1 << 70, -1):
            changed = copy.deepcopy(usual)
            place = changed
            for key in path:
                place = place[key]
            if place[last] == odd:
                continue
            place[last] = odd
            lines = differences(changed, usual)
            if odd == [] and last == "msrs":
                continue
            assert lines, (path, last, odd)
            assert all(line.isprintable() and len(line) < 400 for line in lines)
        del place[last]
        assert differences(changed, usual)
        place[last + "x"] = 1
        assert len(differences(changed, usual)) == 2


@pytest.mark.parametrize("alien", [{}, {"format": 9}, {"devices": []}, {"\n": {"\n": 1}}])
def test_an_alien_description_fits_nowhere(usual: Any, alien: dict[str, object]) -> None:
    lines = differences(alien, usual)

    assert lines
    assert all(line.isprintable() and len(line) < 400 for line in lines)
