"""What a guest tells of itself is read carefully: it may be cut off, wrong, or hostile."""

from __future__ import annotations

import pytest

from minivmm.control.facts import MOST_DEVICES, parse_facts
from minivmm.devices.virtio_mem.view import GuestFacts


def test_general_facts_go_to_every_device() -> None:
    found = parse_facts(
        "block 134217728\npolicy offline\navailable 1000\n"
        "device a\ndriver bound\nonline 1\noffline 2\nkernel 1\nlog one\nlog two\n"
        "device b\ndriver missing\n"
    )

    assert found["a"] == GuestFacts(
        memory_block=134217728,
        policy="offline",
        driver="bound",
        online=1,
        offline=2,
        kernel_zone=1,
        available=1000,
        log=("one", "two"),
    )
    assert found["b"] == GuestFacts(
        memory_block=134217728, policy="offline", driver="missing", available=1000
    )


@pytest.mark.parametrize(
    "line",
    [
        "block 0",
        "block 3",
        "block -1",
        "block 99999999999999999999999999",
        "block \u0663",
        "online",
        "online x",
        "driver stolen",
        "nonsense",
        "",
        "device",
    ],
)
def test_nonsense_is_as_if_never_told(line: str) -> None:
    assert parse_facts(f"device a\n{line}\n")["a"] == GuestFacts()


def test_nothing_is_known_of_nothing() -> None:
    assert parse_facts("") == {}
    assert parse_facts("block 4096\n") == {}


def test_texts_are_short_printable_and_few() -> None:
    log = "log \x1b[2J" + "x" * 10_000 + "\n"
    facts = parse_facts("policy \x07bell\ndevice a\n" + log * 100)["a"]

    assert facts.policy == "?bell"
    assert len(facts.log) == 4
    assert facts.log[0].startswith("?[2Jxxx")
    assert max(map(len, facts.log)) <= 160


def test_a_flood_of_devices_is_cut() -> None:
    assert len(parse_facts("device x\n" + "".join(f"device {n}\n" for n in range(1900)))) == (
        MOST_DEVICES
    )
