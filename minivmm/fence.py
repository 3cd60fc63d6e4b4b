"""The one store-load fence, and why it is needed.

x86 keeps loads in order and stores in order, but lets a later load pass an earlier store to
another address. A virtqueue has two places where that loses a wake-up (reference C.6): the device
stores used.idx and then loads the driver's event word; the driver does the mirror image. Without
a full fence both may read the old value and both go to sleep.
"""

from __future__ import annotations

import threading

_lock = threading.Lock()


def full_fence() -> None:
    """Make every earlier store of this thread visible before any later load of it.

    An uncontended lock acquire in CPython is a locked instruction (a sem_trywait or a compare and
    exchange), which is a full barrier on x86; nobody else ever holds this lock for longer.
    """
    with _lock:
        pass
