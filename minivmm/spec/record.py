"""`Record`: a typed face over construct. Every wire structure is declared with it and nowhere else.

    @record
    class MsixEntry(Record):
        address_low: int = u32()
        address_high: int = u32()
        data: int = u32()
        control: int = u32(1)

A record is a frozen dataclass; `parse` and `build` go through a construct Struct made from its
fields. construct is slow (about 10 us a structure), so hot paths overlay bytes themselves and a
test proves that both agree (shared/DESIGN.md, section 3).

There are a hundred records, all declared before a machine's first instruction, and few are used by
then. So their methods are here, not compiled anew for each class as dataclasses does, and a Struct
is made when it is first used.
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import Any, ClassVar, Self, TypeVar, dataclass_transform

_FIELD = "field"


@dataclass(frozen=True)
class Field:
    """How a field stands on the wire: its bytes, as a little-endian `number`, as a record of
    `kind`, or as they are.
    """

    size: int
    number: bool = False
    kind: type[Record] | None = None


_U8, _U16, _U32, _U64 = (Field(size, number=True) for size in (1, 2, 4, 8))


def _field(form: Field, default: Any) -> Any:
    return dataclasses.field(default=default, metadata={_FIELD: form})


def u8(default: int = 0) -> Any:
    """An unsigned byte."""
    return _field(_U8, default)


def u16(default: int = 0) -> Any:
    """A little-endian unsigned 16-bit integer."""
    return _field(_U16, default)


def u32(default: int = 0) -> Any:
    """A little-endian unsigned 32-bit integer."""
    return _field(_U32, default)


def u64(default: int = 0) -> Any:
    """A little-endian unsigned 64-bit integer."""
    return _field(_U64, default)


def raw(size: int, default: bytes = b"") -> Any:
    """`size` bytes as they are; a shorter default is filled up with zeroes."""
    return _field(Field(size), default.ljust(size, b"\0"))


def pad(size: int) -> Any:
    """`size` reserved bytes: built as zeroes, kept but not judged when parsed."""
    return raw(size)


def nested(kind: type[Record], default: Record | None = None) -> Any:
    """Another record in place."""
    return _field(Field(kind.SIZE, kind=kind), default if default is not None else kind())


class Record:
    """Base of all wire structures; see the module docstring for how to declare one."""

    SIZE: ClassVar[int]
    """Bytes on the wire."""
    OFFSETS: ClassVar[dict[str, int]]
    """Byte offset of every field."""
    FIELDS: ClassVar[dict[str, Field]]
    """How every field stands on the wire."""
    _DEFAULTS: ClassVar[dict[str, Any]]
    _STRUCT: ClassVar[Any]

    def __init__(self, *values: Any, **named: Any) -> None:
        """Fields by position or by name; the others have their defaults. Raises TypeError."""
        names = self.OFFSETS
        by_position = dict(zip(names, values, strict=False))
        wrong = len(values) > len(names) or named.keys() & by_position or named.keys() - names
        if wrong:
            raise TypeError(f"{type(self).__name__} has the fields {', '.join(names)}, each once")
        vars(self).update(self._DEFAULTS | by_position | named)

    def __setattr__(self, name: str, value: object) -> None:
        raise dataclasses.FrozenInstanceError(f"cannot assign to field {name!r}")

    def __delattr__(self, name: str) -> None:
        raise dataclasses.FrozenInstanceError(f"cannot delete field {name!r}")

    def __eq__(self, other: object) -> bool:
        return type(other) is type(self) and vars(other) == vars(self)

    def __hash__(self) -> int:
        return hash(tuple(vars(self).values()))

    def __repr__(self) -> str:
        fields = ", ".join(f"{name}={value!r}" for name, value in vars(self).items())
        return f"{type(self).__qualname__}({fields})"

    @classmethod
    def struct(cls) -> Any:
        """The construct.Struct behind parse and build."""
        if cls._STRUCT is None:
            from minivmm.spec.record_struct import struct_of

            cls._STRUCT = struct_of(cls.FIELDS)
        return cls._STRUCT

    @classmethod
    def parse(cls, data: bytes | memoryview) -> Self:
        """The record in the first SIZE bytes of `data`. Raises ValueError if there are fewer."""
        if len(data) < cls.SIZE:
            raise ValueError(f"{cls.__name__} needs {cls.SIZE} bytes, got {len(data)}")
        parsed = cls.struct().parse(bytes(data[: cls.SIZE]))
        return cls(**{name: parsed[name] for name in cls.OFFSETS})

    def build(self) -> bytes:
        """The SIZE bytes of this record. Raises ValueError if a value does not fit its field."""
        from construct import ConstructError

        try:
            return bytes(self.struct().build(vars(self)))
        except ConstructError as error:
            raise ValueError(f"{type(self).__name__}: {error}") from error

    @classmethod
    def layout(cls) -> list[tuple[int, int, str]]:
        """(offset, size, name) of every field, ascending; for documentation and tests."""
        return [(cls.OFFSETS[name], field.size, name) for name, field in cls.FIELDS.items()]


R = TypeVar("R", bound=Record)


@dataclass_transform(kw_only_default=False, frozen_default=True, field_specifiers=(_field,))
def record(cls: type[R]) -> type[R]:
    """Class decorator: frozen dataclass plus SIZE, OFFSETS and FIELDS from its fields."""
    made = dataclasses.dataclass(init=False, repr=False, eq=False)(cls)
    fields = dataclasses.fields(made)  # type: ignore[arg-type]
    made.FIELDS = {item.name: item.metadata[_FIELD] for item in fields}
    made._DEFAULTS = {item.name: item.default for item in fields}
    made._STRUCT = None
    made.OFFSETS = {}
    made.SIZE = 0
    for name, form in made.FIELDS.items():
        made.OFFSETS[name] = made.SIZE
        made.SIZE += form.size
    return made
