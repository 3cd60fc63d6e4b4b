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
"""

from __future__ import annotations

import dataclasses
from typing import Any, ClassVar, Self, TypeVar, dataclass_transform

import construct

_FORMAT = "construct"


def _field(subcon: Any, default: Any) -> Any:
    return dataclasses.field(default=default, metadata={_FORMAT: subcon})


def u8(default: int = 0) -> Any:
    """An unsigned byte."""
    return _field(construct.Int8ul, default)


def u16(default: int = 0) -> Any:
    """A little-endian unsigned 16-bit integer."""
    return _field(construct.Int16ul, default)


def u32(default: int = 0) -> Any:
    """A little-endian unsigned 32-bit integer."""
    return _field(construct.Int32ul, default)


def u64(default: int = 0) -> Any:
    """A little-endian unsigned 64-bit integer."""
    return _field(construct.Int64ul, default)


def raw(size: int, default: bytes = b"") -> Any:
    """`size` bytes as they are; a shorter default is filled up with zeroes."""
    return _field(construct.Bytes(size), default.ljust(size, b"\0"))


def pad(size: int) -> Any:
    """`size` reserved bytes: built as zeroes, kept but not judged when parsed."""
    return raw(size)


def nested(kind: type[Record], default: Record | None = None) -> Any:
    """Another record in place."""
    return _field(_Nested(kind), default if default is not None else kind())


class _Nested(construct.Adapter):  # type: ignore[misc]
    """construct adapter: a Record inside a Record."""

    def __init__(self, kind: type[Record]) -> None:
        super().__init__(construct.Bytes(kind.SIZE))
        self._kind = kind

    def _decode(self, data: bytes, context: Any, path: Any) -> Record:
        return self._kind.parse(data)

    def _encode(self, value: Record, context: Any, path: Any) -> bytes:
        return value.build()


class Record:
    """Base of all wire structures; see the module docstring for how to declare one."""

    SIZE: ClassVar[int]
    """Bytes on the wire."""
    OFFSETS: ClassVar[dict[str, int]]
    """Byte offset of every field."""
    STRUCT: ClassVar[Any]
    """The construct.Struct behind parse and build."""

    @classmethod
    def parse(cls, data: bytes | memoryview) -> Self:
        """The record in the first SIZE bytes of `data`. Raises ValueError if there are fewer."""
        if len(data) < cls.SIZE:
            raise ValueError(f"{cls.__name__} needs {cls.SIZE} bytes, got {len(data)}")
        parsed = cls.STRUCT.parse(bytes(data[: cls.SIZE]))
        return cls(**{name: parsed[name] for name in cls.OFFSETS})

    def build(self) -> bytes:
        """The SIZE bytes of this record. Raises ValueError if a value does not fit its field."""
        values = {name: getattr(self, name) for name in self.OFFSETS}
        try:
            return bytes(self.STRUCT.build(values))
        except construct.ConstructError as error:
            raise ValueError(f"{type(self).__name__}: {error}") from error

    @classmethod
    def layout(cls) -> list[tuple[int, int, str]]:
        """(offset, width in bytes, name) of every field, in order: for docs and tests."""
        ends = [*list(cls.OFFSETS.values())[1:], cls.SIZE]
        pairs = zip(cls.OFFSETS.items(), ends, strict=True)
        return [(offset, end - offset, name) for (name, offset), end in pairs]


R = TypeVar("R", bound=Record)


@dataclass_transform(kw_only_default=False, frozen_default=True, field_specifiers=(_field,))
def record(cls: type[R]) -> type[R]:
    """Class decorator: frozen dataclass plus SIZE, OFFSETS and STRUCT from its fields."""
    made = dataclasses.dataclass(frozen=True)(cls)
    subcons: list[Any] = []
    offsets: dict[str, int] = {}
    offset = 0
    for item in dataclasses.fields(made):  # type: ignore[arg-type]
        subcon = item.metadata[_FORMAT]
        offsets[item.name] = offset
        offset += subcon.sizeof()
        subcons.append(construct.Renamed(subcon, newname=item.name))
    made.STRUCT = construct.Struct(*subcons)
    made.OFFSETS = offsets
    made.SIZE = offset
    return made
