"""A limit in bytes that several keep to together, so that each may use what the others leave.

Beyond it the oldest goes of whoever keeps most. So who keeps no more than an even share loses nothing to the
others, and who never lets go of anything loses what it alone has piled up. Pure.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol

__all__ = ["Keeper", "Share"]

NO_LIMIT = 1 << 62


class Keeper(Protocol):
    """One of them."""

    num_bytes: int
    """What it keeps."""

    def forget_oldest(self) -> bool:
        """Give room back. False: all that it keeps must stay."""


class Share:
    """What some keepers keep together."""

    def __init__(self, max_bytes: int = NO_LIMIT, on_room: Callable[[], None] = lambda: None) -> None:
        """`on_room` is called when something goes while there is too much."""
        self.max_bytes, self.num_bytes = max_bytes, 0
        self._on_room = on_room
        self._keepers: set[Keeper] = set()
        """Those that keep anything."""

    def count(self, keeper: Keeper, num_bytes: int) -> None:
        """A keeper keeps so much more, which it has counted itself."""
        was_full = self.num_bytes > self.max_bytes
        self.num_bytes += num_bytes
        change = self._keepers.add if keeper.num_bytes else self._keepers.discard
        change(keeper)
        if was_full and num_bytes < 0:
            self._on_room()

    def make_room(self) -> None:
        """Forget what is too much: the oldest of whoever keeps most, one at a time. Who must keep all that it
        has is passed over, and nobody goes below an even share for it.
        """
        while self.num_bytes > self.max_bytes:
            over = sorted(filter(self._has_more, self._keepers), key=lambda keeper: -keeper.num_bytes)
            if not any(keeper.forget_oldest() for keeper in over):
                return

    def holds_back(self, keeper: Keeper) -> bool:
        """Whether there is too much, and the keeper has more than an even share of it."""
        return self.num_bytes > self.max_bytes and self._has_more(keeper)

    def _has_more(self, keeper: Keeper) -> bool:
        return keeper.num_bytes * len(self._keepers) > self.max_bytes
