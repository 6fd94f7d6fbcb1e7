"""Asking replicas who they are, again and again."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable, Mapping, Sequence
from typing import Any, TypeAlias

from rearview.config import SpanConfig
from rearview.contract.lease import Lease
from rearview.ingress.lanes import Lanes
from rearview.ingress.shared import Shared
from rearview.transport.wire import decode_lease

__all__ = ["Members", "Roster"]

logger = logging.getLogger(__name__)

INTERVAL_S = 0.5
"""How often replicas are asked to describe themselves; also what a new replica waits to be used."""
START_INTERVAL_S = 0.1
TIMEOUT_S = 5.0

Members: TypeAlias = Callable[[], Awaitable[Sequence[Mapping[str, Any]]]]
"""The descriptions of all replicas (`Stage.describe`), however they are reached."""


class Roster:
    """Keeps lanes informed of the replicas there are. For one event loop."""

    def __init__(self, members: Members, lanes: Lanes, spans: Sequence[SpanConfig]) -> None:
        self._members, self._lanes = members, lanes
        self._needed = frozenset(span.name for span in spans if span.min_replicas != 0)
        self._shared = Shared(self._ask)
        self.known: Sequence[Mapping[str, Any]] = ()
        """What they have last said."""

    async def refresh(self) -> Sequence[Mapping[str, Any]]:
        """Ask the replicas who they are; returns their descriptions, which placement uses from now on."""
        return await self._shared()

    async def held(self) -> Mapping[str, Lease | None]:
        """The sessions that replicas hold, and their leases as far as replicas know them."""
        found: dict[str, Lease | None] = {}
        for described in await self.refresh():
            known = described.get("leases", {})  # A replica of the release before knows none.
            for session_id in described["sessions"]:
                told = known.get(session_id)
                found[session_id] = found.get(session_id) if told is None else decode_lease(told)
        return found

    async def try_refresh(self, timeout_s: float = TIMEOUT_S) -> None:
        """`refresh`, but what is known stays in use where no answer comes."""
        try:
            async with asyncio.timeout(timeout_s):
                await self.refresh()
        except Exception as error:  # No replica yet, or Serve is away.
            logger.info("replicas could not be asked: %s", type(error).__name__)

    async def _ask(self) -> Sequence[Mapping[str, Any]]:
        descriptions = await self._members()
        self._lanes.update(descriptions)
        self.known = descriptions
        return descriptions

    @property
    def is_complete(self) -> bool:
        """Whether every span that is never without a replica has one that seems to be alive."""
        return self._lanes.fleet.serves(self._needed)

    async def wait_until_complete(self) -> None:
        """Return when it is: before that nothing is served."""
        while not self.is_complete:
            await self.try_refresh()
            await asyncio.sleep(0 if self.is_complete else START_INTERVAL_S)

    async def run(self) -> None:
        """Ask for ever."""
        while True:
            await asyncio.sleep(INTERVAL_S)
            await self.try_refresh()
