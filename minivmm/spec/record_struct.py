"""struct_of: the fields of a record as a construct Struct; apart, as construct is slow to load.

record.py asks for it when the first record is parsed or built.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import construct

if TYPE_CHECKING:
    from minivmm.spec.record import Field, Record

_INTEGERS = {
    1: construct.Int8ul,
    2: construct.Int16ul,
    4: construct.Int32ul,
    8: construct.Int64ul,
}


class _Nested(construct.Adapter):  # type: ignore[misc]
    """construct adapter: a Record inside a Record."""

    def __init__(self, kind: type[Record]) -> None:
        super().__init__(construct.Bytes(kind.SIZE))
        self._kind = kind

    def _decode(self, data: bytes, context: Any, path: Any) -> Record:
        return self._kind.parse(data)

    def _encode(self, value: Record, context: Any, path: Any) -> bytes:
        return value.build()


def struct_of(fields: dict[str, Field]) -> Any:
    """The construct.Struct of `fields`, by name."""
    return construct.Struct(*(name / _subcon(field) for name, field in fields.items()))


def _subcon(field: Field) -> Any:
    if field.kind is not None:
        return _Nested(field.kind)
    return _INTEGERS[field.size] if field.number else construct.Bytes(field.size)
