"""What the replicas that an ingress may send sessions to say by themselves: their pulses, and what follows
when one stops; and what placement must know of them.

`control/liveness.py` judges, this listens and acts. Every replica that is described is dialled at once,
before a session needs it: what is not linked cannot be heard. One that is dead is told so, for when it wakes,
and its link is closed: sessions on it are lost in the ordinary way, whatever has happened to the replica.
"""

from __future__ import annotations

import asyncio
import logging
import math
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any, assert_never

from rearview.contract.beat import Cause
from rearview.contract.events import Events, ReplicaCondemned
from rearview.control import lane_events as words
from rearview.control.liveness import TICK_S, Dead, Doubted, Judge, Verdict
from rearview.control.placement import Replica
from rearview.ingress.tasks import Tasks
from rearview.transport.beat import decode_beat
from rearview.transport.links import Link, LinkClosed, LinkPool
from rearview.transport.wire import Body, Kind, decode_json

__all__ = ["Pulses"]

logger = logging.getLogger(__name__)


class Pulses:
    """The replicas that one ingress listens to. For one event loop."""

    def __init__(
        self,
        pool: LinkPool,
        events: Events,
        happened: Callable[[words.Event], None],
        read: Callable[[Mapping[str, Any]], Replica],
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """`happened`: told of a replica that is doubted, so that no session waits for it nor goes there until
        it is trusted again, while those that it has go on unless its link is closed; and of one that is
        trusted and says what placement must know. `read`: such a description.
        """
        self._pool, self._events, self._clock = pool, events, clock
        self._happened, self._read = happened, read
        self._judge = Judge(clock())
        self._described: dict[str, Mapping[str, Any]] = {}
        """The last word of each replica there is, by address."""
        self._told: dict[str, tuple[float, Mapping[str, Any]]] = {}
        """What each has last told by itself, and when."""
        self._links: dict[str, Link] = {}
        self._dialled: set[str] = set()
        """Addresses to which a link is being made."""
        self._tasks = Tasks(_log_fault)

    def start(self) -> None:
        """Judge from now on."""
        self._tasks.spawn(self._run())

    def stop(self) -> None:
        """Judge no more. Links stay, and are the pool's."""
        self._tasks.cancel()

    def trusted(
        self, descriptions: Sequence[Mapping[str, Any]], asked_s: float = math.inf
    ) -> list[Mapping[str, Any]]:
        """Those of the replicas described (`Stage.describe`) that new sessions may go to. Makes a link to
        each that has none. `asked_s`: when they were asked; what one has told since is newer.
        """
        self._described = {
            described["address"]: {**described, **self._told_since(described["address"], asked_s)}
            for described in descriptions
        }
        self._told = {address: word for address, word in self._told.items() if address in self._described}
        for address in self._described.keys() - self._links.keys() - self._dialled:
            if not self._judge.is_dead(address):
                self._dialled.add(address)
                self._judge.meet(address, self._clock())
                self._tasks.spawn(self._dial(address))
        return [word for address, word in self._described.items() if self._judge.is_trusted(address)]

    @property
    def described(self) -> Sequence[Mapping[str, Any]]:
        """The last word of each replica there is (`Stage.describe`)."""
        return tuple(self._described.values())

    def heard(self, link: Link, kind: Kind, body: Body) -> None:
        """A HEARTBEAT or a CAPACITY has come. Raises WireError."""
        address = self._pool.address(link)
        if address is None:
            return
        was_trusted = self._judge.is_trusted(address)
        if kind is Kind.HEARTBEAT:
            self._carry_out(self._judge.heard(address, decode_beat(body), self._clock()))
        elif address in self._described:
            word = {**decode_json(body), "address": address}
            self._told[address] = self._clock(), word
            self._described[address] = {**self._described[address], **word}
        has_news = kind is Kind.CAPACITY or not was_trusted
        if has_news and address in self._described and self._judge.is_trusted(address):
            self._happened(words.Told(self._read(self._described[address])))

    def _told_since(self, address: str, since_s: float) -> Mapping[str, Any]:
        at_s, word = self._told.get(address, (-math.inf, {}))
        return word if at_s > since_s else {}

    def closed(self, address: str) -> None:
        """The link to that address has ended."""
        self._links.pop(address, None)
        self._judge.forget(address)

    async def _run(self) -> None:
        while True:
            await asyncio.sleep(TICK_S)
            self._carry_out(self._judge.tick(self._clock()))

    async def _dial(self, address: str) -> None:
        try:
            link = await self._pool.get(address)
        except LinkClosed:
            self._carry_out(self._judge.unreachable(address))
            return
        finally:
            self._dialled.discard(address)
        if link.closed:
            return
        self._links[address] = link
        if link.knows(Kind.HEARTBEAT):
            self._judge.linked(address, self._clock())
        else:
            self._judge.forget(address)  # It never says anything of itself.

    def _carry_out(self, verdicts: Sequence[Verdict]) -> None:
        for verdict in verdicts:
            match verdict:
                case Doubted(address):
                    logger.warning("a replica is slow to answer: no new session goes there")
                    self._happened(words.Doubted(address))
                case Dead(address, cause):
                    self._condemn(address, cause)
                case _:
                    assert_never(verdict)

    def _condemn(self, address: str, cause: Cause) -> None:
        span = self._described.get(address, {}).get("span", "")
        logger.error("a replica of %s is condemned: %s", span, cause.value)
        self._events(ReplicaCondemned(span, cause))
        self._happened(words.Doubted(address))
        link = self._links.get(address)
        if link is not None:
            link.part(Kind.CONDEMN)


def _log_fault(error: BaseException) -> None:
    logger.error("a replica's pulse is not watched any more", exc_info=error)
