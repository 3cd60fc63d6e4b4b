"""Replays a recorded conversation against the device model, without a guest, and compares.

Time passes as fast as it can, and the host does whatever it is asked, except where the recording
says that it did not.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from minivmm.devices.virtio_mem.device import VirtioMem
from minivmm.devices.virtio_mem.spec import VirtioMemSpec
from minivmm.errors import MinivmmError, UsageError
from minivmm.machine_spec import spec_from_json
from minivmm.memory.guest import GuestMemory
from minivmm.memory.layout import Window
from minivmm.memory.region import Access, Region
from minivmm.spec.virtio_mem import (
    BlockState,
    MemRequest,
    MemResponse,
    RequestType,
    ResponseType,
)
from minivmm.testing.fake_queue import FakeChain, FakeQueue, FakeSignals
from minivmm.testing.recording import Conversation, Step
from minivmm.testing.shrinking import fewer
from minivmm.tracing.text import asked

_WORDS = {
    "answer": "answer",
    "found": "state of the blocks",
    "change": "change of plugged-size",
    "written": "used length",
    "interrupts": "config interrupts",
    "value": "value",
    "accepted": "features accepted",
}


class _StillRegion(Region):
    """Nothing costs anything, and all is refused while a step says so."""

    refuses = False

    def populate(self, offset: int, length: int) -> None:
        """Nothing, or OSError."""
        self.discard(offset, length)

    def discard(self, offset: int, length: int) -> None:
        """Nothing, or OSError."""
        if self.refuses:
            raise OSError("the host refused it when this was recorded")

    def protect(self, offset: int, length: int, access: Access) -> None:
        """Nothing."""


class _Memory(GuestMemory):
    """Its listeners refuse where a step says so."""

    refuses = False

    def plug(self, *place: Any) -> None:
        """As GuestMemory, or OSError."""
        if self.refuses:
            raise OSError("the host refused it when this was recorded")
        super().plug(*place)


@dataclass(frozen=True)
class Deviation:
    """At step `number` of the conversation the model told something else than the recording."""

    number: int
    step: Step
    key: str
    recorded: object
    model: object

    def __str__(self) -> str:
        what = _WORDS.get(self.key, self.key)
        return (
            f"event {self.step.first['n']} ({self.step.first['t']:.6f} s): {said(self.step)}:"
            f" {what} was {_shown(self.recorded)}, the model's is {_shown(self.model)}"
        )


Make = Callable[[VirtioMemSpec, Window, Region], VirtioMem]


class Model:
    """A device as it was when `conversation` began. Use as a context, or close it."""

    def __init__(self, conversation: Conversation, make: Make = VirtioMem) -> None:
        about = conversation.device
        spec = _spec(conversation)
        window = Window(about["memaddr"], spec.size)
        self._region = _StillRegion(spec.size)
        self._memory = _Memory()
        self._signals = FakeSignals()
        self.device = device = make(spec, window, self._region)
        device.attach(self._memory, self._signals)
        block = device.block_size
        for gpa, size in about["plugged"]:
            device.blocks.plug((gpa - window.base) // block, size // block)
        device.state.requested_size = about["state"]["requested-size"]
        device.state.usable_region_size = about["state"]["usable-size"]

    def close(self) -> None:
        """Unmap its region."""
        self._memory.close()

    def take(self, step: Step) -> dict[str, object]:
        """What the model tells in `step`, by the keys of Step.told, and maybe more."""
        event, device = step.first, self.device
        self._signals.config_changes.clear()
        if step.kind == "request":
            self._region.refuses = self._memory.refuses = step.refused
            told = self._request(event)
            self._region.refuses = self._memory.refuses = False
            return told
        if step.kind == "resize":
            device.set_requested_size(event["requested-size"])
            return {
                "requested-size": device.requested_size,
                "usable-size": device.usable_region_size,
                "interrupts": sum(self._signals.config_changes),
            }
        if step.kind == "config-read":
            data = device.read_config(event["offset"], event["size"])
            return {"value": f"{int.from_bytes(data, 'little'):#x}"}
        if step.kind == "features":
            return self._features(event)
        if step.kind in ("reset", "system-reset"):
            device.reset()
            if step.kind == "system-reset":
                device.system_reset()
        return {}

    def _request(self, event: Mapping[str, Any]) -> dict[str, object]:
        device, kind = self.device, event["type"]
        number = RequestType[kind] if isinstance(kind, str) else kind
        request = MemRequest(
            type=int(number), addr=event.get("gpa", 0), nb_blocks=event.get("blocks", 0)
        )
        chain, before = FakeChain(request.build(), MemResponse.SIZE), device.plugged_size
        device.handle_queue(0, FakeQueue(chain))
        response = MemResponse.parse(chain.written.ljust(MemResponse.SIZE, b"\0"))
        known = response.type in set(ResponseType)
        answer = ResponseType(response.type).name if known else response.type
        told: dict[str, object] = {
            "answer": answer if chain.written else None,
            "change": device.plugged_size - before,
            "written": chain.used,
            "usable-size": device.usable_region_size,
        }
        if number == RequestType.STATE and response.type == ResponseType.ACK:
            told["found"] = BlockState(response.state).name
        return told

    def _features(self, event: Mapping[str, Any]) -> dict[str, object]:
        """What the transport refused is no matter of the device."""
        refused = str(event["refused"])
        if refused.endswith("was not offered") or refused == "VERSION_1 is missing":
            return {"accepted": False}
        return {"accepted": self.device.accept_features(int(event["chosen"], 16))}


def replay(
    conversation: Conversation, make: Make = VirtioMem, *, steps: Sequence[int] | None = None
) -> Deviation | None:
    """The first deviation; None: the model tells all that the recording does.

    With `steps`, only those are taken, and only the last of them is compared.
    """
    model = Model(conversation, make)
    try:
        chosen = range(len(conversation.steps)) if steps is None else steps
        for number in chosen:
            step = conversation.steps[number]
            try:
                told = model.take(step)
            except Exception as error:  # the recorded device did not fall; DeviceBroken and bugs
                why = f"{type(error).__name__}: {error}"
                told = dict.fromkeys(step.told or ("outcome",), why)
            if steps is not None and number != steps[-1]:
                continue
            for key, recorded in (step.told or {"outcome": None}).items():
                if told.get(key) != recorded:
                    return Deviation(number, step, key, recorded, told.get(key))
        return None
    finally:
        model.close()


def shrink(
    conversation: Conversation, deviation: Deviation, make: Make = VirtioMem
) -> tuple[int, ...]:
    """Numbers of the few steps that show the same `deviation`, which is that of the last one."""
    last = deviation.number

    def same(kept: tuple[int, ...]) -> bool:
        found = replay(conversation, make, steps=(*kept, last))
        return found is not None and (found.key, found.recorded, found.model) == (
            deviation.key,
            deviation.recorded,
            deviation.model,
        )

    return (*fewer(range(last), same), last) if last and same(tuple(range(last))) else (last,)


def core(conversation: Conversation, numbers: Sequence[int]) -> list[dict[str, Any]]:
    """A trace, header first, of those steps alone, with sizes that fit them."""
    plugged = conversation.device["state"]["plugged-size"]
    lines: list[dict[str, Any]] = [{**conversation.header, "devices": [conversation.device]}]
    for number in numbers:
        step = conversation.steps[number]
        change = step.told.get("change", 0)
        assert isinstance(change, int)
        plugged = 0 if step.kind == "system-reset" else plugged + change
        for event in step.events:
            kept = dict(event)
            if "plugged" in kept:
                kept["plugged"] = plugged
            lines.append(kept)
    return lines


def said(step: Step) -> str:
    """`step` in words."""
    event = step.first
    if step.kind == "request":
        return asked(event)
    if step.kind == "resize":
        return f"resize to {event['requested-size']:#x}"
    if step.kind == "config-read":
        return f"read of {event['size']} bytes at {event['offset']} of the configuration"
    return step.kind


def _spec(conversation: Conversation) -> VirtioMemSpec:
    """The device as the user asked for it; its memory is not wanted."""
    try:
        machine = spec_from_json(conversation.header["spec"])
    except (MinivmmError, TypeError) as error:
        raise UsageError(f"the trace's machine is not understood: {error}") from None
    for spec in machine.memory_devices:
        if spec.id == conversation.identifier:
            return spec
    raise UsageError(f"the trace's machine has no {conversation.identifier}")


def _shown(value: object) -> str:
    if value is None:
        return "none"
    return f"{value:#x}" if isinstance(value, int) and abs(value) > 1 << 12 else str(value)
