"""The ingress's side of the stages: lanes over links. What to do is decided in `control/lanes.py`.

`Lanes` tells the decisions what happens on links, and does what they say: it opens a session on one replica
per span, sends its frames to the first, takes its pictures from the last, and tells when a lane is lost.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import math
import time
from collections.abc import Callable, Coroutine, Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any, assert_never

from numpy.typing import NDArray

from rearview.config import LinkConfig
from rearview.contract.cost import FrameCost
from rearview.contract.events import Events, no_events
from rearview.contract.frame import Frame
from rearview.contract.lease import Lease, Usage
from rearview.contract.session import SessionSpec
from rearview.control import lane_events as words
from rearview.control import lanes as decide
from rearview.control.fleet import Fleet, LaneId, LaneState
from rearview.control.placement import ANY, Asked, Replica
from rearview.control.ranked import Ranked
from rearview.errors import RearviewError, Reason, Refused
from rearview.ingress.lane import Lane, Returning
from rearview.ingress.pulse import Pulses
from rearview.transport.bulk import Source, serve
from rearview.transport.codec import FrameCodec
from rearview.transport.links import Link, LinkClosed, LinkPool, LinkServer
from rearview.transport.refusal import refused
from rearview.transport.wire import (
    Body,
    Kind,
    decode_json,
    encode_json,
    encode_lease,
    encode_spec,
    frame_head,
)

__all__ = ["Lanes"]

logger = logging.getLogger(__name__)

OPEN_TIMEOUT_S = 5.0
"""A replica that is alive may take so long to answer an open; for one that seems not to be nobody waits."""
OPEN_FROM_STATE_TIMEOUT_S = 30.0
"""The same where it pulls what the session is, before it answers. One that hangs is known by its beats."""
ASK_TIMEOUT_S = 1.0
"""The same for a question that costs a replica nothing."""

NOTHING: Mapping[str, Any] = MappingProxyType({})


@dataclass(frozen=True, slots=True)
class _Wanted:
    """Who waits for a lane."""

    content: Mapping[str, Any]
    """Of the request to every replica, but for what differs between them."""
    opened: asyncio.Future[None]
    replies: dict[str, Mapping[str, Any]]
    """By replica."""

    def answer(self, error: BaseException | None) -> None:
        """There is the lane, or why there is none."""
        if self.opened.done():
            return
        if error is None:
            self.opened.set_result(None)
        else:
            self.opened.set_exception(error)


class Lanes:
    """Replicas of all spans, as one ingress sees them. For one event loop."""

    def __init__(
        self,
        spans: Sequence[str],
        link: LinkConfig,
        node: str,
        *,
        on_frame: Callable[[Frame[NDArray[Any]]], None],
        on_lane_lost: Callable[[str, int, RearviewError], None],
        on_lane_drains: Callable[[str, int], None],
        source: Source,
        events: Events = no_events,
    ) -> None:
        """`on_frame`: a picture has come back.

        `on_lane_lost(session_id, epoch, why)`: an open lane is gone, and its slots are given back.
        `on_lane_drains(session_id, epoch)`: a replica of an open lane is about to go. `source`: what
        replicas pull from here.
        """
        self._fleet, self._ranked = Fleet(tuple(spans)), Ranked(spans)
        self._on_frame, self._on_lane_lost = on_frame, on_lane_lost
        self._on_lane_drains, self._source = on_lane_drains, source
        self._links: dict[str, Link] = {}
        """By the address of the replica at the other end."""
        self._open: dict[LaneId, Returning] = {}
        self._wanted: dict[LaneId, _Wanted] = {}
        self._tasks: set[asyncio.Task[None]] = set()
        self._server = LinkServer(link, node, on_message=self._on_message, on_closed=lambda _: None)
        self._pool = LinkPool(link, node, on_message=self._on_message, on_closed=self._on_link_closed)
        self.pulses = Pulses(self._pool, events, self._happened, _replica)
        self._address = ""

    async def start(self) -> None:
        """Take links from the last spans."""
        self._address = str(await self._server.start())
        self.pulses.start()

    async def stop(self) -> None:
        """Close every lane, then every link: what ends in order leaves nothing behind in a replica."""
        self.pulses.stop()
        self._happened(words.Stopping())
        for task in tuple(self._tasks):
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        await self._pool.stop()
        await self._server.stop()

    @property
    def address(self) -> str:
        """Where links to this ingress are dialled."""
        return self._address

    def update(self, descriptions: Sequence[Mapping[str, Any]], asked_s: float = math.inf) -> None:
        """Take what the replicas say of themselves (see `Pulses.trusted`), but those that seem to be dead."""
        trusted = self.pulses.trusted(descriptions, asked_s)
        self._happened(words.Described([_replica(each) for each in trusted]))

    @property
    def fleet(self) -> Fleet:
        """What is known of replicas and lanes."""
        return self._fleet

    def choose(self, usage: Mapping[str, Usage], asked: Asked = ANY) -> tuple[str, ...]:
        """A replica per span for a session. Raises Full."""
        return self._ranked.place(self._fleet.replicas, usage, asked)

    async def open(
        self, spec: SessionSpec, epoch: int, replicas: Sequence[str], begin: Mapping[str, Any] = NOTHING
    ) -> Lane:
        """Take a slot on each replica. `begin`: what they are told of its load and its past.

        Raises Refused or Fault; then, or when cancelled, no slot is held.
        """
        wanted = words.LaneWanted(LaneId(spec.session_id, epoch), tuple(replicas))
        lane, _ = await self._ask(wanted, {"session": encode_spec(spec), **begin})
        return lane

    async def attach(self, lease: Lease, *, closes: bool = False) -> tuple[Lane, Sequence[Mapping[str, Any]]]:
        """Adopt the session that the lease's replicas hold. Its epoch fences the former owner, whose stream
        ends TAKEN_OVER, or CLOSED if this one only `closes` it. Returns also where it stands on each;
        pictures that were kept come meanwhile. Raises as `open` does, and NotFound; then the lane is gone.
        """
        wanted = words.LaneWanted(LaneId(lease.session_id, lease.epoch), lease.lane, adopts=True)
        content = {"session_id": lease.session_id, "takes_over": True, "closes": closes}
        return await self._ask(wanted, {**content, "lease": encode_lease(lease)})

    async def is_open(self, lease: Lease) -> bool:
        """Whether its replicas can adopt the session. A directory knows its lane before they do."""
        replicas = [self._fleet.replicas[each] for each in lease.lane if self.knows(lease.lane)]
        return bool(replicas) and await _is_open(self._pool, [each.address for each in replicas], lease)

    async def _ask(
        self, event: words.LaneWanted, content: Mapping[str, Any]
    ) -> tuple[Lane, Sequence[Mapping[str, Any]]]:
        lane_id = event.lane
        wanted = _Wanted(content, asyncio.get_running_loop().create_future(), {})
        self._wanted[lane_id] = wanted
        try:
            self._happened(event)
            await wanted.opened
        except BaseException:
            self._happened(words.LaneUnwanted(lane_id))
            self._open.pop(lane_id, None)
            raise
        finally:
            del self._wanted[lane_id]
        state = self._fleet.lanes.get(lane_id)
        if state is None:  # Lost since it was opened.
            raise Refused(Reason.REPLICA_LOST, "a replica is gone", retry_after_s=decide.RETRY_AFTER_S)
        replies = [wanted.replies[each] for each in event.replicas]
        return _lane(lane_id, state, self._links, self._open[lane_id], replies), replies

    def knows(self, replicas: Sequence[str]) -> bool:
        """Whether a lane of these replicas can be asked for."""
        return all(replica in self._fleet.replicas for replica in replicas)

    def holds(self, lane: Lane) -> bool:
        """Whether the lane is open still."""
        return LaneId(lane.session_id, lane.epoch) in self._fleet.lanes

    def lose(self, lane: Lane) -> None:
        """The lane is of no use any more, if it is open still: `on_lane_lost` is told."""
        self._happened(words.LaneLost(LaneId(lane.session_id, lane.epoch)))

    def give_away(self, lane: Lane) -> None:
        """The directory says that another owner has the session, or is about to: `on_lane_lost` is told."""
        self._happened(words.LaneTaken(LaneId(lane.session_id, lane.epoch)))

    def close(self, lane: Lane) -> None:
        """Give the lane's slots back. Idempotent."""
        self._happened(words.LaneUnwanted(LaneId(lane.session_id, lane.epoch)))

    def _happened(self, event: words.Event) -> None:
        self._fleet, actions = decide.after(self._fleet, event)
        for action in actions:
            self._perform(action)

    def _perform(self, action: words.Action) -> None:
        match action:
            case words.Dial(lane, replica):
                self._spawn(lane, self._dial(lane, replica))
            case words.TakeSlot(lane):
                self._spawn(lane, self._take_slot(action))
            case words.FreeSlot(lane, address, after_s):
                self._open.pop(lane, None)
                if after_s:
                    self._spawn(lane, self._free_later(after_s, lane, address))
                else:
                    self._free_slot(lane, address)
            case words.Opened(lane):
                self._answer(lane, None)
            case words.Refuse(lane, error):
                self._answer(lane, error)
            case words.EndSession(lane, error):
                self._on_lane_lost(lane.session_id, lane.epoch, error)
            case words.Vacate(lane):
                self._on_lane_drains(lane.session_id, lane.epoch)
            case _:
                assert_never(action)

    async def _dial(self, lane: LaneId, replica: Replica) -> None:
        try:
            link = await self._pool.get(replica.address)
        except LinkClosed:
            self._happened(words.DialFailed(lane, replica))
            return
        self._links[replica.address] = link
        self._happened(words.Dialled(lane, replica))

    async def _take_slot(self, asked: words.TakeSlot) -> None:
        lane, replica_id = asked.lane, asked.replica.replica_id
        wanted, state = self._wanted.get(lane), self._fleet.lanes.get(lane)
        if wanted is None or state is None:
            return  # Given up before anything was sent.
        # Before the first request: a span that is adopted sends at once what it has kept.
        # A lane has one version, the least of its links'.
        version = min(self._links[replica.address].version for replica in state.replicas)
        opened = self._open.setdefault(lane, Returning(FrameCodec(version, self._fleet.spans)))
        kind = Kind.ATTACH if asked.adopts else Kind.OPEN
        content = {
            **wanted.content,
            "epoch": lane.epoch,
            "next": asked.next_address or self._address,
            "version": opened.codec.version,
        }
        try:
            reply = await _slot(self._links[asked.replica.address], kind, content)
            event: words.Event = words.SlotTaken(lane, replica_id)
        except (LinkClosed, TimeoutError):
            reply, event = NOTHING, words.SlotUnanswered(lane, replica_id)
        except RearviewError as error:
            reply, event = NOTHING, words.SlotRefused(lane, replica_id, error)
        if self._wanted.get(lane) is wanted:  # Else given up; whoever wants it now asks anew.
            wanted.replies[replica_id] = reply
            self._happened(event)

    async def _free_later(self, after_s: float, lane: LaneId, address: str) -> None:
        await asyncio.sleep(after_s)
        self._free_slot(lane, address)

    def _free_slot(self, lane: LaneId, address: str) -> None:
        link = self._links.get(address)
        if link is None:
            return  # A replica that is gone holds no slot.
        with contextlib.suppress(LinkClosed):
            link.send(Kind.CLOSE, encode_json({"session_id": lane.session_id, "epoch": lane.epoch}))

    def _answer(self, lane: LaneId, error: BaseException | None) -> None:
        if (wanted := self._wanted.get(lane)) is not None:
            wanted.answer(error)

    def _on_message(self, link: Link, kind: Kind, body: Body) -> None:
        if kind is Kind.FRAME:
            self._take_picture(link, body)
        elif kind in (Kind.HEARTBEAT, Kind.CAPACITY):
            self.pulses.heard(link, kind, body)
        elif kind is Kind.LOST:
            self._happened(_lost(decode_json(body), link.version))
        elif kind is Kind.DRAINING:
            self._happened(words.Draining(self._pool.address(link) or ""))
        elif kind is Kind.PULL:
            request = decode_json(body)
            lane = LaneId(request["session_id"], request["epoch"])
            self._spawn(lane, serve(link, request, self._source))

    def _take_picture(self, link: Link, body: Body) -> None:
        known = self._open.get(LaneId(*frame_head(body)))
        if known is not None:  # Else of a lane that was closed.
            known.source = link
            self._on_frame(known.codec.decode(body, time.monotonic()))

    def _on_link_closed(self, link: Link) -> None:
        address = self._pool.address(link) or ""
        self._links.pop(address, None)
        self.pulses.closed(address)
        self._happened(words.LinkLost(address))

    def _spawn(self, lane: LaneId, coroutine: Coroutine[Any, Any, None]) -> None:
        task = asyncio.create_task(coroutine)
        self._tasks.add(task)
        task.add_done_callback(lambda done: self._task_done(lane, done))

    def _task_done(self, lane: LaneId, task: asyncio.Task[None]) -> None:
        self._tasks.discard(task)
        if not task.cancelled() and (error := task.exception()) is not None:
            logger.error("a task of a lane has failed", exc_info=error)
            self._answer(lane, error)  # A fault of ours: who wanted the lane fails with it.


async def _is_open(pool: LinkPool, addresses: Sequence[str], lease: Lease) -> bool:
    asked = {"session_id": lease.session_id}
    try:
        async with asyncio.timeout(ASK_TIMEOUT_S):
            links = await asyncio.gather(*map(pool.get, addresses))
            if not all(link.knows(Kind.STANDING) for link in links):
                return True  # A replica of the release before is not asked.
            told = await asyncio.gather(*(_slot(link, Kind.STANDING, asked) for link in links))
    except (LinkClosed, TimeoutError, RearviewError):
        return False
    return bool(told[0].get("is_noted")) and all(each.get("is_open") for each in told)


def _lane(
    lane: LaneId,
    state: LaneState,
    links: Mapping[str, Link],
    returning: Returning,
    replies: Sequence[Mapping[str, Any]],
) -> Lane:
    """One whose replicas have replied."""
    addresses = tuple(replica.address for replica in state.replicas)
    kernels = tuple(str(reply.get("kernels", "")) for reply in replies)
    names, used = tuple(each.replica_id for each in state.replicas), tuple(links[each] for each in addresses)
    return Lane(lane.session_id, lane.epoch, names, used, returning, addresses, kernels)


async def _slot(link: Link, kind: Kind, content: dict[str, Any]) -> Mapping[str, Any]:
    """What a replica says that gives a slot. Raises what it refuses with, LinkClosed and TimeoutError."""
    if not link.knows(kind):
        raise Refused(Reason.REPLICA_LOST, "the replica is too old", retry_after_s=decide.RETRY_AFTER_S)
    limit_s = OPEN_FROM_STATE_TIMEOUT_S if "state" in content else OPEN_TIMEOUT_S
    async with asyncio.timeout(limit_s):
        reply = await link.request(kind, content)
    if "reason" in reply:
        raise refused(reply)
    return reply


def _replica(described: Mapping[str, Any]) -> Replica:
    d = described
    cost = None if d.get("cost") is None else FrameCost.of(d["cost"])
    free_slots = 0 if d.get("superseded") else d["free_slots"]  # Of an old cluster, whatever it tells.
    told = (d["replica_id"], d["span"], d["address"], d["node"], free_slots, d["slots"])
    load = (d.get("share", 0.0), d.get("pixels_per_s", 0.0))
    return Replica(*told, cost, *load, d.get("started_s", 0.0), d.get("draining", False))


def _lost(content: Mapping[str, Any], version: int) -> words.Event:
    """What LOST says: version 1 does not tell which of the two it is."""
    lane = LaneId(content["session_id"], content["epoch"])
    if "hop" in content or version == 1:
        return words.LaneLost(lane)
    return words.LaneTaken(lane, bool(content.get("closed")))
