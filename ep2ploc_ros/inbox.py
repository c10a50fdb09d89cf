"""Hands messages from the executor to a worker thread: the newest of each kind, so nothing queues up."""

from __future__ import annotations

import threading
from collections import Counter
from typing import Any


class Inbox:
    """One slot per kind of message. `received` and `dropped` (replaced before they were taken) count by kind."""

    def __init__(self) -> None:
        self.received: Counter[str] = Counter()
        self.dropped: Counter[str] = Counter()
        self.closed = False
        self._slots: dict[str, Any] = {}
        self._news = threading.Condition()

    def put(self, kind: str, item: Any) -> None:
        """Leaves an item, in place of an older one of its kind."""
        with self._news:
            self.received[kind] += 1
            self.dropped[kind] += kind in self._slots
            self._slots[kind] = item
            self._news.notify()

    def count_dropped(self, kind: str) -> None:
        """Counts an item that was taken, and replaced by a newer one before anything was done with it."""
        with self._news:
            self.dropped[kind] += 1

    def take(self, timeout: float) -> dict[str, Any]:
        """Waits up to `timeout` seconds for news, and empties all slots."""
        with self._news:
            self._news.wait_for(lambda: self._slots or self.closed, timeout)
            taken, self._slots = self._slots, {}
            return taken

    def take_one(self, kind: str, timeout: float) -> Any:
        """Waits up to `timeout` seconds for an item of one kind and takes it alone; None when none came."""
        with self._news:
            self._news.wait_for(lambda: kind in self._slots or self.closed, timeout)
            return self._slots.pop(kind, None)

    def close(self) -> None:
        """Ends every wait."""
        with self._news:
            self.closed = True
            self._news.notify_all()
