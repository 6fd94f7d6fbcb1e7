"""What waits to be written on one socket: bounded, in order, and a newer word may replace an older one."""

from __future__ import annotations

import asyncio
from collections import defaultdict, deque
from itertools import count

__all__ = ["Outbox", "SlowPeer"]

MAX_WAITING = 1024
MAX_LIVE_PICTURES = 2
"""Of one live tile, that may wait."""


class SlowPeer(Exception):
    """The peer does not read: its socket is to be closed."""


class Outbox:
    """For one event loop. `next` is called by one task."""

    def __init__(self) -> None:
        self._items: dict[object, str | bytes] = {}
        """Insertion order is the order of writing; a key that is there keeps its place."""
        self._live: defaultdict[int, deque[tuple[int, int]]] = defaultdict(deque)
        """Key and frame of the pictures of live tiles that wait."""
        self._keys = count()
        self._changed = asyncio.Event()
        self._is_closed = False

    def put(self, item: str | bytes, key: object = None) -> None:
        """Add a message; with a `key` it takes the place of the one that waits under it. Raises SlowPeer."""
        if self._is_closed:
            return
        name: object = next(self._keys) if key is None else ("key", key)
        if name not in self._items and len(self._items) >= MAX_WAITING:
            raise SlowPeer(f"{MAX_WAITING} messages wait")
        self._items[name] = item
        self._changed.set()

    def put_live(self, tile: int, frame: int, picture: bytes) -> int | None:
        """Add a picture of a live tile. Returns the frame of an older one that it displaced."""
        waiting, key = self._live[tile], next(self._keys)
        while waiting and waiting[0][0] not in self._items:
            waiting.popleft()
        displaced = None
        if len(waiting) >= MAX_LIVE_PICTURES:
            oldest, displaced = waiting.popleft()
            del self._items[oldest]
        waiting.append((key, frame))
        self._items[key] = picture
        self._changed.set()
        return displaced

    async def next(self) -> str | bytes | None:
        """The oldest message, once there is one; None: the outbox is closed, and all was written."""
        while not self._items:
            if self._is_closed:
                return None
            self._changed.clear()
            await self._changed.wait()
        key = next(iter(self._items))
        return self._items.pop(key)

    def close(self) -> None:
        """Nothing more is taken; what waits is still given out."""
        self._is_closed = True
        self._changed.set()
