"""What a piece of code costs, counted: bytecode instructions and calls into C. Not its time.

Counts are the same on every machine and in every run, which times are not.
"""

from __future__ import annotations

import gc
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from types import FrameType
from typing import Any


@dataclass
class Cost:
    """Of what ran in this thread; fakes (minivmm/testing) are left out, they may cost anything."""

    instructions: int = 0
    calls: int = 0
    """Of C functions."""


@contextmanager
def counted(cost: Cost) -> Iterator[None]:
    """Add to `cost` what runs inside."""

    def trace(frame: FrameType, event: str, _argument: object) -> Any:
        if "/testing/" in frame.f_code.co_filename:
            return None
        frame.f_trace_opcodes, frame.f_trace_lines = True, False
        cost.instructions += event == "opcode"
        return trace

    def profile(frame: FrameType, event: str, _argument: object) -> None:
        cost.calls += event == "c_call" and "/testing/" not in frame.f_code.co_filename

    old_trace, old_profile = sys.gettrace(), sys.getprofile()
    gc.disable()  # a collection in between would count, as others have callbacks for it
    sys.settrace(trace)
    sys.setprofile(profile)
    try:
        yield
    finally:
        sys.setprofile(old_profile)
        sys.settrace(old_trace)
        gc.enable()
