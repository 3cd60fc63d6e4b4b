"""`minivmm replay`: a recorded driver against the device model, without a guest."""

from __future__ import annotations

import argparse
import json
import time
from pathlib import Path
from typing import TYPE_CHECKING

from minivmm.cli.text import add_device, add_json, print_json, say
from minivmm.errors import ExitStatus, HostError, UsageError

if TYPE_CHECKING:
    from minivmm.testing.recording import Conversation
    from minivmm.testing.replay import Deviation


def configure(parser: argparse.ArgumentParser) -> None:
    """Options of the verb."""
    add = parser.add_argument
    add("file", metavar="FILE", help="a trace, as boot --record or boot --trace writes it")
    add_device(parser)
    add("--core", metavar="OUT", help="write the few events that show a deviation to OUT, a trace")
    add_json(parser)


def run(args: argparse.Namespace) -> int:
    """Replay; 1 if the device model tells anything else than the recording does."""
    from minivmm.testing.recording import conversations
    from minivmm.testing.replay import replay
    from minivmm.tracing.reader import read_file

    path = Path(args.file)
    try:
        found = conversations(read_file(path))
    except (KeyError, TypeError, AttributeError) as error:
        raise UsageError(f"{path} is damaged: {type(error).__name__}: {error}") from None
    chosen = [one for one in found if args.device in (None, one.identifier)]
    if not chosen:
        devices = ", ".join(one.identifier for one in found) or "none"
        raise UsageError(f"{path} has no such memory device (there are: {devices})")
    status = ExitStatus.OK
    rows: list[dict[str, object]] = []
    for conversation in chosen:
        began = time.perf_counter()
        deviation = replay(conversation)
        seconds = round(time.perf_counter() - began, 4)
        row = {"id": conversation.identifier, **conversation.counts(), "seconds": seconds}
        rows.append(row | {"equal": deviation is None})
        if deviation is None:
            _report(args, conversation, seconds)
        else:
            status = ExitStatus.FAILED
            rows[-1] |= _explain(args, conversation, deviation)
    if args.json:
        print_json({"file": str(path), "memory-devices": rows})
    return status


def _report(args: argparse.Namespace, conversation: Conversation, seconds: float) -> None:
    if args.json:
        return
    counts = ", ".join(f"{count} {kind}" for kind, count in conversation.counts().items())
    left = f"; {conversation.unanswered} not answered by its end" if conversation.unanswered else ""
    print(f"{conversation.identifier}: as recorded: {counts or 'nothing'}{left} ({seconds:.2f} s)")


def _explain(
    args: argparse.Namespace, conversation: Conversation, deviation: Deviation
) -> dict[str, object]:
    """Say what is different, and the least that shows it."""
    from minivmm.testing.replay import core, said, shrink

    numbers = shrink(conversation, deviation)
    steps = [said(conversation.steps[number]) for number in numbers]
    if args.core is not None:
        lines = [json.dumps(line) for line in core(conversation, numbers)]
        try:
            Path(args.core).write_text("".join(f"{line}\n" for line in lines))
        except OSError as error:
            raise HostError(f"cannot write {args.core}: {error.strerror}") from None
        say(f"{args.core}: {len(lines) - 1} events")
    if not args.json:
        print(f"{conversation.identifier}: {deviation}")
        print(f"{len(steps)} of {len(conversation.steps)} steps show it:")
        for number, text in zip(numbers, steps, strict=True):
            print(f"  {conversation.steps[number].first['t']:12.6f} {text}")
    return {
        "event": deviation.step.first["n"],
        "what": str(deviation),
        "recorded": deviation.recorded,
        "model": deviation.model,
        "core": steps,
    }
