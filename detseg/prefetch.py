"""Items made ahead by a thread, so that reading, computing and writing overlap."""

from __future__ import annotations

import contextlib
import queue
import threading
from collections.abc import Generator, Iterator
from typing import TypeVar

ItemT = TypeVar("ItemT")

_WAIT = 0.1
"""Seconds after which a thread that waits looks whether anybody still listens."""


def prefetched(items: Iterator[ItemT], *, depth: int = 4) -> Generator[ItemT, None, None]:
    """The same items in the same order, up to `depth` of them made ahead in a thread, and one more in its hands.

    An error comes where it would have come. When the generator is closed, the thread ends, and closes `items`.
    """
    ready: queue.Queue[ItemT | _End] = queue.Queue(depth)
    over = threading.Event()

    def hand_on(item: ItemT | _End) -> None:
        while not over.is_set():
            with contextlib.suppress(queue.Full):
                ready.put(item, timeout=_WAIT)
                break

    def work() -> None:
        end = _End()
        try:
            for item in items:
                hand_on(item)
                if over.is_set():
                    break
        except BaseException as error:  # raised where the items are used
            end.error = error
        finally:
            if isinstance(items, Generator):
                items.close()
        hand_on(end)

    thread = threading.Thread(target=work, name="prefetched", daemon=True)
    thread.start()
    try:
        while not isinstance(item := ready.get(), _End):
            yield item
        if item.error is not None:
            raise item.error
    finally:
        over.set()
        thread.join()


class _End:
    """No more items, and why."""

    error: BaseException | None = None
