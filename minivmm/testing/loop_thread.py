"""LoopThread: a real event loop in a thread of its own, for machines without a process around."""

from __future__ import annotations

import threading
from collections.abc import Callable
from concurrent.futures import Future
from typing import TypeVar

from minivmm.closing import Closing
from minivmm.loop import EventLoop

T = TypeVar("T")


class LoopThread(Closing):
    """An EventLoop that runs; `errors` are exceptions that callbacks let out."""

    def __init__(self) -> None:
        self.loop = EventLoop()
        self.errors: list[object] = []
        self.loop.asyncio.set_exception_handler(lambda _, context: self.errors.append(context))
        self.thread = threading.Thread(target=self.loop.asyncio.run_forever, name="loop")
        self.thread.start()

    def run(self, fn: Callable[[], T]) -> T:
        """Result of `fn`, run in the loop's thread without the lock."""
        done: Future[T] = Future()

        def call() -> None:
            try:
                done.set_result(fn())
            except BaseException as error:
                done.set_exception(error)

        self.loop.asyncio.call_soon_threadsafe(call)
        return done.result(10)

    def settle(self) -> None:
        """Return when the loop has done all that it had to do, and what came of that."""
        for _ in range(4):
            self.run(lambda: None)

    def close(self) -> None:
        """Stop the loop when it has done what it had to do. Raises AssertionError for `errors`."""
        self.settle()
        self.loop.asyncio.call_soon_threadsafe(self.loop.asyncio.stop)
        self.thread.join(10)
        self.loop.asyncio.close()
        assert self.errors == []
