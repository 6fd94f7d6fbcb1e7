"""What the replicas of one span say of themselves, while some of them may not answer.

Each is waited for by itself: one that is silent delays nobody for long, and hides nobody. Its last word
stays in use until it is known to be gone, for whether it lives is judged by its heartbeats (`pulse.py`).
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable, Mapping, Sequence
from typing import Any, TypeAlias

__all__ = ["Ask", "Described", "Description"]

logger = logging.getLogger(__name__)

PATIENCE_S = 1.0
"""How long a round waits for those that do not answer."""
LATE_S = 5.0
"""How long an answer may take at all: one that comes after its round counts in the next one."""

Description: TypeAlias = Mapping[str, Any]
"""See `Stage.describe`."""
Ask: TypeAlias = Callable[[], Awaitable[Sequence[Awaitable[Description]]]]
"""Asks all replicas that there are; returns an answer to come for each, which raises if that one is gone."""


class Described:
    """The replicas of one span. For one event loop."""

    def __init__(self, ask: Ask, *, patience_s: float = PATIENCE_S) -> None:
        self._ask, self._patience_s = ask, patience_s
        self._known: dict[str, Description] = {}
        """The last word of each, by replica id."""
        self._late: set[asyncio.Task[str | None]] = set()

    async def refresh(self) -> Sequence[Description]:
        """The newest of each. Where nobody can be asked, all that were known are as they were."""
        try:
            async with asyncio.timeout(LATE_S):
                coming = await self._ask()
        except Exception as error:  # No replica yet, or those who know them are away.
            logger.info("replicas could not be asked: %s", type(error).__name__)
            return list(self._known.values())
        asked = {asyncio.create_task(self._heard(each)) for each in coming}
        answered, silent = await asyncio.wait(asked, timeout=self._patience_s) if asked else (asked, asked)
        self._late |= silent
        for task in silent:
            task.add_done_callback(self._late.discard)
        if not silent:  # Else whoever did not answer may be the one that is silent.
            here = {task.result() for task in answered}
            self._known = {name: word for name, word in self._known.items() if name in here}
        return list(self._known.values())

    async def stop(self) -> None:
        """Wait for nobody any more."""
        for task in tuple(self._late):
            task.cancel()
        await asyncio.gather(*self._late, return_exceptions=True)

    async def _heard(self, coming: Awaitable[Description]) -> str | None:
        """The replica that answers; None: it is gone."""
        try:
            async with asyncio.timeout(LATE_S):
                word = await coming
        except Exception as error:  # A replica that died while it was asked is not there.
            logger.info("a replica did not describe itself: %s", type(error).__name__)
            return None
        replica_id: str = word["replica_id"]
        self._known[replica_id] = word
        return replica_id
