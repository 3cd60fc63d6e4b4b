"""EventLoop: callbacks run on the loop with the lock held, whichever thread asked for them."""

from __future__ import annotations

import os
import threading
from typing import Any

from minivmm.loop import EventLoop


def test_call_soon_runs_on_the_loop_with_the_lock(loop_thread: Any, wait: Any) -> None:
    seen: list[tuple[bool, bool]] = []

    def look() -> None:
        on_loop = threading.current_thread() is loop_thread.thread
        seen.append((on_loop, loop_thread.loop.lock._is_owned()))

    loop_thread.loop.call_soon(look)
    loop_thread.run(lambda: loop_thread.loop.call_soon(look))

    wait(lambda: len(seen) == 2)
    assert seen == [(True, True)] * 2
    assert loop_thread.loop.lock.acquire(timeout=1)
    loop_thread.loop.lock.release()


def test_calls_keep_their_order(loop_thread: Any) -> None:
    seen: list[int] = []
    for number in range(100):
        loop_thread.loop.call_soon(lambda number=number: seen.append(number))

    loop_thread.settle()

    assert seen == list(range(100))


def test_callbacks_wait_for_the_lock(loop_thread: Any, wait: Any) -> None:
    seen: list[bool] = []
    with loop_thread.loop.lock:
        loop_thread.loop.call_soon(lambda: seen.append(True))
        threading.Event().wait(0.02)
        assert seen == []

    wait(lambda: seen)


def test_call_later_and_its_canceller(loop_thread: Any, wait: Any) -> None:
    seen: list[str] = []
    loop = loop_thread.loop
    cancel = loop_thread.run(lambda: loop.call_later(0.01, lambda: seen.append("never")))
    loop_thread.run(cancel)
    loop_thread.run(lambda: loop.call_later(0.02, lambda: seen.append("later")))

    wait(lambda: seen)

    assert seen == ["later"]


def test_watch_follows_a_descriptor_until_unwatched(loop_thread: Any, wait: Any) -> None:
    reader, writer = os.pipe()
    seen: list[bytes] = []
    unwatch = loop_thread.loop.watch(reader, lambda: seen.append(os.read(reader, 10)))

    os.write(writer, b"a")
    wait(lambda: seen == [b"a"])
    unwatch()
    loop_thread.settle()
    os.write(writer, b"b")
    loop_thread.settle()

    assert seen == [b"a"]
    os.close(reader)
    os.close(writer)


def test_an_eventfd_rings_once_for_many_writes(loop_thread: Any, wait: Any) -> None:
    seen: list[bool] = []
    fd, close = loop_thread.loop.watch_eventfd(lambda: seen.append(True))
    loop_thread.settle()

    with loop_thread.loop.lock:
        for _ in range(5):
            os.eventfd_write(fd, 1)

    wait(lambda: seen)
    loop_thread.settle()
    assert len(seen) <= 5
    rings = len(seen)
    loop_thread.settle()
    assert len(seen) == rings
    close()


def test_a_watch_that_ends_before_the_loop_saw_it(loop_thread: Any) -> None:
    """A vCPU binds a doorbell, and the machine is closed before the loop got to it."""

    def bind_elsewhere_and_close() -> tuple[int, int]:
        closers: list[Any] = []
        binder = threading.Thread(
            target=lambda: closers.append(loop_thread.loop.watch_eventfd(lambda: None))
        )
        binder.start()
        binder.join()
        fd, close = closers[0]
        close()
        taken = os.open("/dev/null", os.O_RDONLY)  # the next owner of the number
        return fd, taken

    fd, taken = loop_thread.run(bind_elsewhere_and_close)
    loop_thread.settle()

    assert fd == taken
    assert not loop_thread.run(lambda: loop_thread.loop.asyncio.remove_reader(fd))
    os.close(taken)


def test_calls_to_a_closed_loop_vanish() -> None:
    loop = EventLoop()
    loop.asyncio.close()

    loop.call_soon(lambda: None)
