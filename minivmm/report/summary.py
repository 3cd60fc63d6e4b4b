"""The resizes of a trace as plain JSON data, for scripts; keys in QMP's spelling."""

from __future__ import annotations

from collections.abc import Sequence

from minivmm.report.resizes import Request, Resize, find_requests, find_resizes
from minivmm.report.series import answers, latencies
from minivmm.report.story import MemoryDevice, Story


def summary(story: Story) -> dict[str, object]:
    """All but the single events: sizes in bytes, times in seconds since the machine began."""
    return {
        "name": story.name,
        "began": story.begin,
        "ended": story.end,
        "dropped": story.dropped,
        "devices": [_device(story, device) for device in story.devices],
    }


def _device(story: Story, device: MemoryDevice) -> dict[str, object]:
    requests = find_requests(story, device.id)
    return {
        "id": device.id,
        "block-size": device.block_size,
        "region-size": device.region_size,
        "resizes": [_resize(one) for one in find_resizes(story, device, requests)],
        "latency": _latency(requests),
        "answers": [
            {"type": kind, "answer": answer, "count": count}
            for (kind, answer), count in sorted(answers(requests).items())
        ],
    }


def _resize(one: Resize) -> dict[str, object]:
    return {
        "began": one.began,
        "ended": one.ended,
        "outcome": one.outcome,
        "requested-size": one.target,
        "size-before": one.before,
        "size-after": one.after,
        "requests": len(one.requests),
        "seconds": one.seconds,
        "wake-seconds": one.wake,
        "driver-seconds": one.driver,
        "device-seconds": one.device_share,
        "host-seconds": one.host,
        "memory": {state: {"t": time, "size": size} for state, (time, size) in one.memory.items()},
    }


def _latency(requests: Sequence[Request]) -> list[dict[str, object]]:
    return [
        {
            "type": one.type,
            "count": len(one.sorted),
            "median": one.quantile(0.5),
            "p90": one.quantile(0.9),
            "p99": one.quantile(0.99),
            "max": one.quantile(1.0),
        }
        for one in latencies(requests)
    ]
