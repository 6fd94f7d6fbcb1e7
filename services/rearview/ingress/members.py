"""Who the replicas are: asked when others are there than were, and now and then.

What changes of a replica it tells by itself, over its link (`pulse.py`). What surprises: where nobody knows
who is there without asking, everybody is asked twice a second, which is too much for many.
"""

from __future__ import annotations

import asyncio
import logging
import math
import time
from collections.abc import Awaitable, Callable, Collection, Mapping, Sequence
from typing import Any, TypeAlias

from rearview.config import SpanConfig
from rearview.contract.lease import Lease
from rearview.ingress.lanes import Lanes
from rearview.ingress.shared import Shared
from rearview.transport.wire import decode_lease

__all__ = ["Members", "Present", "Roster", "unasked"]

logger = logging.getLogger(__name__)

INTERVAL_S = 0.5
"""How often to look who is there; also what a new replica waits to be used."""
REST_S = 5.0
"""After so long all are asked though the same are there."""
ASK_S = 0.002
"""For each replica that was asked so long passes before they are asked again, `INTERVAL_S` at most: many
refusals of a full service would keep it busy with nothing else."""
START_INTERVAL_S = 0.1
TIMEOUT_S = 5.0

Members: TypeAlias = Callable[[], Awaitable[Sequence[Mapping[str, Any]]]]
"""The descriptions of all replicas (`Stage.describe`), however they are reached."""
Present: TypeAlias = Callable[[], Collection[str] | None]
"""Names of the replicas there are, without asking them. None: that is not known."""


def unasked() -> None:
    """Where replicas have to be asked."""
    return


class Roster:
    """Keeps lanes informed of the replicas there are. For one event loop."""

    def __init__(
        self,
        members: Members,
        lanes: Lanes,
        spans: Sequence[SpanConfig],
        present: Present = unasked,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._members, self._lanes, self._present, self._clock = members, lanes, present, clock
        self._needed = frozenset(span.name for span in spans if span.min_replicas != 0)
        self._shared = Shared(self._ask)
        self._here: Collection[str] | None = None
        """Who was there when all were asked."""
        self._asked_s, self._free_s = -math.inf, -math.inf
        """When that was, and when they may be asked again."""

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
        await asyncio.sleep(max(0.0, self._free_s - self._clock()))
        here, self._asked_s = self._present(), self._clock()
        descriptions = await self._members()
        self._here, self._free_s = here, self._asked_s + min(ASK_S * len(descriptions), INTERVAL_S)
        self._lanes.update(descriptions, self._asked_s)
        return descriptions

    @property
    def is_complete(self) -> bool:
        """Whether every span that is never without a replica has one that seems to be alive."""
        return self._lanes.fleet.serves(self._needed)

    @property
    def is_due(self) -> bool:
        """Whether all are to be asked."""
        here, rested_s = self._present(), self._clock() - self._asked_s
        lacks_one = len(self._lanes.fleet.replicas) < len(self._lanes.pulses.described)  # Its link is broken.
        return here is None or here != self._here or rested_s >= REST_S or lacks_one

    async def wait_until_complete(self) -> None:
        """Return when it is: before that nothing is served."""
        while not self.is_complete:
            await self.try_refresh()
            await asyncio.sleep(0 if self.is_complete else START_INTERVAL_S)

    async def run(self) -> None:
        """Ask when it is due, for ever."""
        while True:
            await asyncio.sleep(INTERVAL_S)
            if self.is_due:
                await self.try_refresh()
