"""The throttle of MEMORY_DEVICE_SIZE_CHANGE: first at once, then the latest of each second."""

from collections.abc import Callable

from minivmm.control.events import Throttle

SIZE = "MEMORY_DEVICE_SIZE_CHANGE"


class Clock:
    """Runs what is due when told."""

    def __init__(self) -> None:
        self.due: list[tuple[float, Callable[[], None]]] = []

    def later(self, seconds: float, fn: Callable[[], None]) -> None:
        self.due.append((seconds, fn))

    def tick(self) -> None:
        due, self.due = self.due, []
        for _, fn in due:
            fn()


def test_events_without_throttle_pass_at_once() -> None:
    sent: list[dict[str, object]] = []
    throttle = Throttle(sent.append, Clock().later)

    throttle.publish("STOP", {})
    throttle.publish("RESUME", {})

    assert [event["event"] for event in sent] == ["STOP", "RESUME"]
    assert "data" not in sent[0]
    assert set(sent[0]) == {"timestamp", "event"}


def test_the_latest_size_of_a_second_replaces_the_others() -> None:
    sent: list[dict[str, object]] = []
    clock = Clock()
    throttle = Throttle(sent.append, clock.later)

    for size in (1, 2, 3):
        throttle.publish(SIZE, {"id": "vmem0", "size": size})
    assert [event["data"] for event in sent] == [{"id": "vmem0", "size": 1}]
    assert clock.due[0][0] == 1.0

    clock.tick()
    assert sent[-1]["data"] == {"id": "vmem0", "size": 3}
    clock.tick()
    assert len(sent) == 2
    throttle.publish(SIZE, {"id": "vmem0", "size": 4})
    assert len(sent) == 3


def test_devices_are_throttled_apart() -> None:
    sent: list[dict[str, object]] = []
    throttle = Throttle(sent.append, Clock().later)

    throttle.publish(SIZE, {"id": "vmem0", "size": 1})
    throttle.publish(SIZE, {"id": "vmem1", "size": 1})

    assert len(sent) == 2


def test_ports_of_the_console_are_throttled_by_name() -> None:
    sent: list[dict[str, object]] = []
    clock = Clock()
    throttle = Throttle(sent.append, clock.later)

    throttle.publish("VSERPORT_CHANGE", {"id": "a", "open": True})
    throttle.publish("VSERPORT_CHANGE", {"id": "b", "open": True})
    throttle.publish("VSERPORT_CHANGE", {"id": "a", "open": False})
    assert len(sent) == 2
    clock.tick()
    assert sent[-1]["data"] == {"id": "a", "open": False}


def test_what_waits_is_replaced_without_waking_anybody() -> None:
    sent: list[dict[str, object]] = []
    clock = Clock()
    throttle = Throttle(sent.append, clock.later)

    assert not throttle.replace(SIZE, {"id": "vmem0", "size": 1}), "nothing waits yet"
    throttle.publish(SIZE, {"id": "vmem0", "size": 1})
    assert throttle.replace(SIZE, {"id": "vmem0", "size": 2})
    assert throttle.replace(SIZE, {"id": "vmem0", "size": 3})
    assert not throttle.replace(SIZE, {"id": "vmem1", "size": 1})
    assert not throttle.replace("STOP", {}), "those never wait"

    clock.tick()

    assert [event["data"] for event in sent] == [
        {"id": "vmem0", "size": 1},
        {"id": "vmem0", "size": 3},
    ]
