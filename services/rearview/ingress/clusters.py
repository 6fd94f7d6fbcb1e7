"""Other clusters of the same service, which share its directory: an upgrade brings one up beside the old one.

Every ingress claims `cluster/<service>/<generation>/<ingress>` and says there where its links are dialled.
Ingresses of one generation know the same replicas; those of another are asked for theirs, over a link. So a
session is adopted, and moved, across clusters as it is inside one. From the newest generation on all others
are old: their replicas take no session more, sessions on them move off, and their ingresses drain. What
surprises: a generation that is new counts only after a while, since one that fails at once must end nothing.
"""

from __future__ import annotations

import asyncio
import json
import logging
import time
from collections.abc import AsyncGenerator, Callable, Collection, Mapping, Sequence, Set
from contextlib import aclosing
from typing import Any

from rearview.config import ServiceConfig
from rearview.directory.protocol import Claims
from rearview.errors import RearviewError
from rearview.ingress.members import Members, Present, unasked
from rearview.transport.bulk import Source, pull

__all__ = ["Clusters"]

logger = logging.getLogger(__name__)

LOOK_EVERY_S = 1.0
CLAIM_S = 5.0
SETTLE_S = 10.0
"""A cluster that has served for so long is there to stay."""
MAX_BYTES = 16 << 20
"""Of what all replicas of a cluster say."""

Word = Mapping[str, Any]
"""See `Stage.describe`."""


class Clusters:
    """As one ingress sees them. For one event loop."""

    def __init__(
        self,
        claims: Claims,
        config: ServiceConfig,
        ingress_id: str,
        generation: str,
        members: Members,
        node: str,
        present: Present = unasked,
        *,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """`generation`: of this cluster; later ones come later in the order of text. Empty: there are no
        others. `members`, `node`, `present`: of this ingress.
        """
        self._claims, self._links, self._node, self._clock = claims, config.link, node, clock
        self._generation = generation if config.directory.takes_over else ""
        self._prefix, self._ingress_id = f"cluster/{config.name}/", ingress_id
        self._members, self._present = members, present
        self.vacate: Callable[[Set[str]], None] = lambda replicas: None
        """Moves this ingress's sessions off replicas, by their ids."""
        self._address = ""
        self._own: Sequence[Word] = ()
        self._others: dict[str, Sequence[Word]] = {}
        """What replicas last said of themselves, by generation."""
        self._seen_s: dict[str, float] = {}
        """When each other generation was first there."""

    @property
    def is_superseded(self) -> bool:
        """Whether a newer cluster serves, and this one should take nothing more."""
        return self._newest > self._generation

    async def members(self) -> Sequence[Word]:
        """The replicas of all clusters; those of old ones have no free slot. Raises as `Members` does."""
        self._own = await self._members()
        known = {self._generation: self._own, **self._others}
        newest = self._newest
        return [
            word if generation >= newest else {**word, "free_slots": 0, "superseded": True}
            for generation, words in known.items()
            for word in words
        ]

    def present(self) -> Collection[str] | None:
        """The replicas of all clusters as far as they are known without asking, and the newest. See
        `Present`.
        """
        own, others = self._present(), (word for words in self._others.values() for word in words)
        return None if own is None else {*own, *(word["replica_id"] for word in others), self._newest}

    async def source(self, request: Word, otherwise: Source) -> AsyncGenerator[bytes, None]:
        """Answer a PULL: with this cluster's replicas if they are asked for, else as `otherwise` does."""
        if request.get("members"):
            yield json.dumps(list(self._own)).encode()
            return
        async with aclosing(otherwise(request)) as pieces:
            async for piece in pieces:
                yield bytes(piece)

    async def begin(self, address: str) -> None:
        """This ingress serves, and its links are dialled at `address`: others may know."""
        self._address = address
        if self._generation:
            await self._try_look()

    async def run(self) -> None:
        """Look for ever, where there may be others."""
        while self._generation:
            await asyncio.sleep(LOOK_EVERY_S)
            await self._try_look()

    async def look(self) -> None:
        """See who is there, hear what their replicas say, and leave those that are old. Raises
        DirectoryUnavailable.
        """
        await self._claims.claim(
            f"{self._prefix}{self._generation}/{self._ingress_id}", self._address, CLAIM_S
        )
        there: dict[str, list[str]] = {}
        for claim in await self._claims.claims(self._prefix):
            generation, _, _ = claim.key.removeprefix(self._prefix).partition("/")
            there.setdefault(generation, []).append(claim.owner)
        there.pop(self._generation, None)
        now = self._clock()
        self._seen_s = {generation: self._seen_s.get(generation, now) for generation in there}
        heard = await asyncio.gather(*(self._ask(*each) for each in there.items()))
        self._others = dict(zip(there, heard, strict=True))
        newest, known = self._newest, {self._generation: self._own, **self._others}
        old = (words for generation, words in known.items() if generation < newest)
        self.vacate({word["replica_id"] for words in old for word in words})

    @property
    def _newest(self) -> str:
        now = self._clock()
        settled = (each for each, seen_s in self._seen_s.items() if now - seen_s >= SETTLE_S)
        return max((self._generation, *settled))

    async def _try_look(self) -> None:
        try:
            await self.look()
        except RearviewError as error:
            logger.info("other clusters are not known anew: %s", error.message)

    async def _ask(self, generation: str, addresses: Sequence[str]) -> Sequence[Word]:
        """What the replicas of that cluster say, by any of its ingresses; else what they said last."""
        for address in addresses:
            try:
                return await self._pulled(address)
            except (RearviewError, ValueError) as error:
                logger.info("an ingress of another cluster does not answer: %s", type(error).__name__)
        return self._others.get(generation, ())

    async def _pulled(self, address: str) -> Sequence[Word]:
        request = {"session_id": "", "epoch": 0, "members": True}
        content = bytearray()
        async with aclosing(pull(self._links, self._node, address, request)) as parts:
            async for part in parts:
                content += part
                if len(content) > MAX_BYTES:
                    raise ValueError("no cluster says so much of its replicas")
        words: list[Word] = json.loads(content)
        return words
