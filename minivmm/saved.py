"""How a part of a machine gives and takes its state: as bytes in a form declared with construct.

A snapshot and a migration are the same sections of bytes (minivmm.snapshot.machine); which parts
there are, and what is around them on disk or on the wire, is not known here.

    LEVELS = Struct("level" / Int8ul, "runs" / PrefixedArray(Int32ul, Int64ul[2]))  # in forms.py

    FORM = Form("minivmm.forms", "LEVELS")

    def save_state(self) -> bytes:
        return build(FORM, level=self._level, runs=self._runs())

    def load_state(self, data: bytes) -> None:
        state = parse("vmem0", FORM, data)
        require(state.level < 2, "vmem0", "level", state.level, "0 and 1 are possible")

The order of loading is minivmm.machine_state's: every device ("device.ID") comes before every PCI
function with its transport and rings ("function.SLOT"), as rings may lie in memory that a device
has plugged; then the CPUs, and last the interrupt controllers. Nothing is signalled, kicked or read
from guest memory while loading, as RAM may be filled only afterwards; when the machine starts,
every live queue is looked at once. The same section may be loaded again before that: the last one
counts.
"""

from __future__ import annotations

from dataclasses import dataclass
from importlib import import_module
from typing import TYPE_CHECKING, Any, Protocol

from minivmm.errors import BadState as BadState

if TYPE_CHECKING:
    import construct


class Saved(Protocol):
    """A part whose state is saved. Both methods want the machine's lock held."""

    def save_state(self) -> bytes:
        """Its state; the machine is quiescent, and nothing is changed by it."""

    def load_state(self, data: bytes) -> None:
        """Take such a state over. The machine is built, of an equal spec, and not started.

        Everything in `data` is judged as if a hostile guest had written it, before anything is
        changed. Raises BadState.
        """


@dataclass(frozen=True)
class Section:
    """The state of one part: its `name`, unique in a machine, and the version of its form."""

    name: str
    version: int
    data: bytes


@dataclass(frozen=True)
class Form:
    """A form by the `module` and the `name` it has there; loaded when a state is saved or taken.

    Few machines are ever saved, and construct takes a tenth of the time in which one starts.
    """

    module: str
    name: str

    def load(self) -> construct.Construct[Any, Any]:
        """The form itself."""
        found: construct.Construct[Any, Any] = getattr(import_module(self.module), self.name)
        return found


def build(form: Form | construct.Construct[Any, Any], **values: object) -> bytes:
    """`values` in `form`. Raises ValueError for what does not fit, which is a bug of the caller."""
    import construct

    try:
        return bytes(_loaded(form).build(values))
    except construct.ConstructError as error:
        raise ValueError(f"a state does not fit its form: {error}") from error


def parse(part: str, form: Form | construct.Construct[Any, Any], data: bytes) -> Any:
    """The values, as attributes, of `data`, which is `form` from end to end. Raises BadState."""
    import construct

    whole = construct.Struct("state" / _loaded(form), "end" / construct.Tell)
    try:
        parsed = whole.parse(data)
    except construct.ConstructError as error:
        why = " ".join(str(error).split())
        raise BadState(part, "length", len(data), f"it has another form ({why})") from error
    if parsed.end != len(data):
        raise BadState(part, "length", len(data), f"its form ends after {parsed.end} bytes")
    return parsed.state


def _loaded(form: Form | construct.Construct[Any, Any]) -> construct.Construct[Any, Any]:
    return form.load() if isinstance(form, Form) else form


def require(holds: bool, part: str, field: str, value: object, why: str) -> None:
    """Raise BadState about `field` of `part`, unless what must hold does."""
    if not holds:
        raise BadState(part, field, value, why)
