"""Work done in a thread, ahead of its use."""

import queue
import threading
from collections.abc import Iterable, Iterator
from typing import TypeVar

T = TypeVar("T")


class _End:
    """Marks the end of the items."""


def ahead(items: Iterable[T], *, depth: int) -> Iterator[T]:
    """The same items in order, made by a thread up to `depth` before they are asked for.

    What making them raises is raised here, in its place.
    """
    ready: queue.SimpleQueue[T | BaseException | _End] = queue.SimpleQueue()
    slots: queue.SimpleQueue[None] = queue.SimpleQueue()  # one for each item there is room for
    for _ in range(depth):
        slots.put(None)
    stopped = threading.Event()

    def prepare() -> None:
        try:
            for item in items:
                slots.get()
                if stopped.is_set():
                    return
                ready.put(item)
            ready.put(_End())
        except BaseException as error:  # handed to the consumer, who raises it
            ready.put(error)

    thread = threading.Thread(target=prepare, name="prefetch", daemon=True)
    thread.start()
    try:
        while True:
            item = ready.get()
            if isinstance(item, _End):
                return
            if isinstance(item, BaseException):
                raise item
            yield item
            slots.put(None)
    finally:
        stopped.set()
        slots.put(None)
        thread.join()
