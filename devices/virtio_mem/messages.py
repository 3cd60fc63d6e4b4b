"""Descriptor chain -> request, answer -> bytes. What they mean is not decided here.

Request and these overlays stand in for the records of spec/virtio_mem.py, which take longer to
make; a test compares them.
"""

from __future__ import annotations

import struct
from typing import NamedTuple

from minivmm.errors import DeviceBroken
from minivmm.spec.virtio_mem import BlockState, MemRequest, MemResponse, ResponseType
from minivmm.virtio.queue.queue import Chain

_REQUEST = struct.Struct("<H6xQH6x")
_RESPONSE = struct.Struct("<H6xH")


class Request(NamedTuple):
    """What of a MemRequest has a meaning."""

    type: int
    addr: int
    """Guest physical address of the first block."""
    nb_blocks: int


def read_request(chain: Chain) -> Request:
    """The request in `chain`, read once; padding and surplus bytes are ignored (MEM-D-24, D-25).

    Raises DeviceBroken if the request is cut short or its answer would not fit: there is no way to
    tell the driver (reference A.8-1).
    """
    if chain.readable < MemRequest.SIZE or chain.writable < MemResponse.SIZE:
        raise DeviceBroken(
            f"request has {chain.readable} readable and {chain.writable} writable bytes,"
            f" needs {MemRequest.SIZE} and {MemResponse.SIZE}"
        )
    return Request._make(_REQUEST.unpack(chain.read(MemRequest.SIZE)))


def response(answer: ResponseType, state: BlockState | None = None) -> bytes:
    """The 10 bytes of an answer; fields without a meaning are zero."""
    return _RESPONSE.pack(answer, state or 0)
