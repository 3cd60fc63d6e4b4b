"""Random machines for the fuzzer: which device, and with which switches."""

from __future__ import annotations

from random import Random
from typing import Any

from minivmm.testing.fuzz_world import BLOCK, BLOCKS, Setup

_SWITCHES = ("event_idx", "indirect_desc", "in_order", "notification_data", "notif_config_data")
_OTHER_SWITCHES = ("queue_reset", "iommu_platform", "ioeventfd", "flr")
_SIZES = (None,) * 10 + (1, 1, 2, 2, 4, 4, 8, 16, 256, 32768)


def setup(rng: Random, device: str, *, packed: bool) -> Setup:
    """A machine with `device`, whose transport has random switches."""
    options: dict[str, Any] = {"packed": packed}
    for name in _SWITCHES + _OTHER_SWITCHES:
        if rng.random() < 0.5:
            options[name] = rng.random() < 0.6
    size = rng.choice((*_SIZES, 3, 3, 7, 100) if packed else _SIZES)
    if size is not None:
        options["queue_size"] = size
        if size < 8:
            options["indirect_desc"] = True  # or it would hold no request, which is refused
    options["vectors"] = rng.choice((None,) * 10 + (0, 0, 0, 1, 1, 2, 2, 7, 128))
    memory = {
        "requested_size": rng.choice((0, 4, 24, BLOCKS)) * BLOCK,
        "prealloc": rng.random() < 0.5,
        "protect": rng.choice(("off", "off", "report")),
        "unplugged_inaccessible": rng.choice(("auto", "auto", "on")),
        "backing": rng.choice(("anon", "anon", "memfd")),
    }
    return Setup(device, options, _special(rng, device), memory)


def _special(rng: Random, device: str) -> dict[str, Any]:
    match device:
        case "rng":
            return {"max_bytes": rng.choice((None, 64, 5000))}
        case "balloon":
            return {
                "free_page_reporting": rng.random() < 0.7,
                "guest_stats_polling_interval": rng.choice((0, 1)),
            }
        case "blk":
            return {
                "readonly": rng.random() < 0.2,
                "discard": rng.random() < 0.8,
                "write_zeroes": rng.random() < 0.8,
                "serial": rng.choice((None, "minivmm")),
            }
    return {}
