"""The guest's side of virtio-mem: builds requests, reads answers. `send` carries them."""

from __future__ import annotations

from collections.abc import Callable

from minivmm.devices.virtio_mem.device import VirtioMem
from minivmm.spec.virtio_mem import (
    BlockState,
    MemConfig,
    MemRequest,
    MemResponse,
    RequestType,
    ResponseType,
)
from minivmm.testing.driver import VirtioPciDriver
from minivmm.testing.fake_queue import FakeChain, FakeQueue

Send = Callable[[bytes], bytes]
"""Delivers the bytes of a request; returns those of the response."""


def directly(device: VirtioMem) -> Send:
    """Requests go straight to `device`, without a ring."""

    def send(request: bytes) -> bytes:
        chain = FakeChain(request, MemResponse.SIZE)
        device.handle_queue(0, FakeQueue(chain))
        assert chain.used == MemResponse.SIZE, "used.len is the number of bytes written"
        return chain.written

    return send


def by_queue(driver: VirtioPciDriver) -> Send:
    """Requests go through the ring of `driver`'s queue 0."""
    return lambda request: driver.request(0, request, MemResponse.SIZE)


class MemDriver:
    """Requests by block number, counted from the start of `device`'s region."""

    def __init__(self, device: VirtioMem, send: Send | None = None) -> None:
        self._device = device
        self._send = send or directly(device)

    def request(self, kind: int, addr: int = 0, nb_blocks: int = 0) -> MemResponse:
        """The answer to any request, `addr` being a guest physical address."""
        request = MemRequest(type=kind, addr=addr, nb_blocks=nb_blocks)
        return MemResponse.parse(self._send(request.build()))

    def plug(self, block: int, count: int = 1) -> ResponseType:
        """The answer to plugging `count` blocks from `block`."""
        return self._on_blocks(RequestType.PLUG, block, count)

    def unplug(self, block: int, count: int = 1) -> ResponseType:
        """The answer to unplugging `count` blocks from `block`."""
        return self._on_blocks(RequestType.UNPLUG, block, count)

    def unplug_all(self) -> ResponseType:
        """The answer to UNPLUG_ALL."""
        return ResponseType(self.request(RequestType.UNPLUG_ALL).type)

    def state(self, block: int, count: int = 1) -> BlockState | None:
        """State of `count` blocks from `block`; None if the answer is not ACK."""
        response = self.request(RequestType.STATE, self.address(block), count)
        return BlockState(response.state) if response.type == ResponseType.ACK else None

    def address(self, block: int) -> int:
        """Guest physical address of `block`."""
        return self._device.window.base + block * self._device.block_size

    def config(self) -> MemConfig:
        """The configuration space as it is now."""
        return MemConfig.parse(self._device.config_space())

    def _on_blocks(self, kind: RequestType, block: int, count: int) -> ResponseType:
        return ResponseType(self.request(kind, self.address(block), count).type)
