"""Switches that every virtio device has: names, what is refused, what is offered."""

from __future__ import annotations

import pytest

from minivmm.errors import UsageError
from minivmm.options import describe, from_mapping, parse_pairs, to_pairs
from minivmm.spec.virtio import Feature
from minivmm.virtio.options import VirtioOptions


def parse(text: str) -> VirtioOptions:
    head, values = parse_pairs(f"device,{text}")
    return from_mapping(VirtioOptions, values, what=head)


def test_names_are_those_of_qemu() -> None:
    names = {name for name, _, _ in describe(VirtioOptions)}
    assert names >= {"packed", "event_idx", "indirect_desc", "in_order", "queue_reset"}
    assert names >= {"iommu_platform", "ioeventfd", "notification_data", "queue-size"}


def test_defaults_are_those_of_qemu() -> None:
    offered = VirtioOptions().ring_features
    wanted = (Feature.VERSION_1, Feature.INDIRECT_DESC, Feature.EVENT_IDX, Feature.RING_RESET)
    assert offered == sum(feature.mask for feature in wanted)


def test_options_survive_the_command_line() -> None:
    options = parse("packed=on,event_idx=off,queue-size=100,in_order")
    assert options == VirtioOptions(packed=True, event_idx=False, queue_size=100, in_order=True)
    assert parse(to_pairs(options)) == options


@pytest.mark.parametrize("size", [1, 2, 128, 32768])
def test_sizes_of_split_rings(size: int) -> None:
    assert parse(f"queue-size={size}").queue_size == size


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("queue-size=0", r"queue-size 0 is out of range: use 1 to 32768 \(nearest: 1\)"),
        ("queue-size=32769,packed=on", r"32769 is out of range: .*\(nearest: 32768\)"),
        ("queue-size=100", r"not a power of two.*\(nearest: 64, 128\), or use packed=on"),
        ("queue-size=3,packed=off", r"\(nearest: 2, 4\)"),
    ],
)
def test_sizes_that_the_specification_forbids(text: str, message: str) -> None:
    with pytest.raises(UsageError, match=message):
        parse(text)
