"""Device models when the driver resets one of their queues (GEN-D-7, GEN-D-8)."""

from __future__ import annotations

import pytest

from minivmm.devices.virtio_console.device import VirtioConsole
from minivmm.spec.virtio_console import (
    CONTROL_RECEIVE_QUEUE,
    CONTROL_TRANSMIT_QUEUE,
    NO_PORT,
    ControlMessage,
    Event,
    receive_queue,
)
from minivmm.spec.virtio_mem import MemRequest, MemResponse, RequestType, ResponseType
from minivmm.testing.driver import DeviceBench, VirtioPciDriver
from minivmm.testing.mem_bench import make_device
from minivmm.testing.slow_host import SlowHost
from minivmm.units import GIB, MIB


@pytest.mark.rule("GEN-D-7")
@pytest.mark.parametrize("packed", [False, True])
def test_memory_request_that_the_host_works_on_is_finished_but_not_answered(packed: bool) -> None:
    device = make_device(size=GIB, requested_size=256 * MIB, prealloc=True, packed=packed)
    host = SlowHost()
    plug = MemRequest(RequestType.PLUG, addr=4 * GIB, nb_blocks=16).build()
    state = MemRequest(RequestType.STATE, addr=4 * GIB, nb_blocks=16).build()
    with DeviceBench(device) as bench:
        device.use(host)
        driver = bench.driver.start()
        assert driver.submit(0, plug, writable=(MemResponse.SIZE,)) == []
        assert not host.over
        old = driver.queues[0]
        driver.reset_queue(0)
        assert host.over
        assert device.plugged_size == 32 * MIB
        assert old.collect() == []
        driver.setup_queue(0)
        answer = MemResponse.parse(driver.request(0, state, MemResponse.SIZE))
        assert answer.type == ResponseType.ACK
        assert not bench.events("broken")


def give_buffers(driver: VirtioPciDriver, index: int) -> list[bytes]:
    """What came back in them at once."""
    return [used.data for _ in range(4) for used in driver.submit(index, writable=(64,))]


@pytest.mark.rule("GEN-D-7")
def test_console_input_goes_to_the_buffers_of_the_new_queue_only() -> None:
    console = VirtioConsole()
    index = receive_queue(1)
    with DeviceBench(console) as bench:
        driver = bench.driver.start()
        give_buffers(driver, CONTROL_RECEIVE_QUEUE)
        for number, event in ((NO_PORT, Event.DEVICE_READY), (1, Event.PORT_READY)):
            driver.submit(CONTROL_TRANSMIT_QUEUE, ControlMessage(number, event, 1).build())
        give_buffers(driver, index)
        driver.submit(CONTROL_TRANSMIT_QUEUE, ControlMessage(1, Event.PORT_OPEN, 1).build())
        old = driver.queues[index]
        driver.reset_queue(index)
        console.ports[1].send(b"hello")
        assert old.collect() == []
        driver.setup_queue(index)
        assert give_buffers(driver, index) == [b"hello"]
        assert not bench.events("broken")
