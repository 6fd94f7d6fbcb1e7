"""The ingress's side of the stages: who is there, which lane a session gets, and frames over links.

`Lanes` knows replicas only by what they describe about themselves. It opens a session on one replica per
span, sends its frames to the first, takes its pictures from the last, and tells when a replica is lost.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from numpy.typing import NDArray

from rearview.config import LinkConfig
from rearview.contract.frame import Frame
from rearview.contract.session import SessionSpec
from rearview.contract.settings import Settings
from rearview.control.placement import Replica, place
from rearview.errors import Fault, RearviewError, Reason, Refused
from rearview.transport.codec import FrameCodec
from rearview.transport.links import Link, LinkClosed, LinkPool, LinkServer
from rearview.transport.wire import (
    Kind,
    decode_json,
    encode_json,
    encode_settings,
    encode_spec,
    frame_head,
)

__all__ = ["Lane", "Lanes"]

logger = logging.getLogger(__name__)

RETRY_AFTER_S = 1.0
OPEN_TIMEOUT_S = 10.0
"""A replica that does not answer an open for so long is taken for dead: it may be busy, not silent."""


@dataclass(frozen=True, slots=True)
class Lane:
    """A session's replicas, one per span, the link to each, and how its frames are written."""

    session_id: str
    epoch: int
    replicas: tuple[str, ...]
    links: tuple[Link, ...]
    codec: FrameCodec


class Lanes:
    """Replicas of all spans, as one ingress sees them. For one event loop."""

    def __init__(
        self,
        spans: Sequence[str],
        link: LinkConfig,
        node: str,
        *,
        on_frame: Callable[[Frame[NDArray[Any]]], None],
        on_lane_lost: Callable[[str, int], None],
        on_replica_lost: Callable[[str], None],
    ) -> None:
        """`on_frame`: a picture has come back.

        `on_lane_lost(session_id, epoch)` and `on_replica_lost(replica_id)`: the sessions' state is gone.
        """
        self._spans = tuple(spans)
        self._on_frame = on_frame
        self._on_lane_lost, self._on_replica_lost = on_lane_lost, on_replica_lost
        self._replicas: dict[str, Replica] = {}
        self._codecs: dict[str, FrameCodec] = {}
        """By the session of each open lane."""
        self._dialled: dict[str, str] = {}
        """Address to replica id: a replica that nobody describes any more can still be lost."""
        self._server = LinkServer(link, node, on_message=self._on_message, on_closed=lambda _: None)
        self._pool = LinkPool(link, node, on_message=self._on_message, on_closed=self._on_link_closed)
        self._address = ""

    async def start(self) -> None:
        """Take links from the last spans."""
        self._address = str(await self._server.start())

    async def stop(self) -> None:
        """Close every link: replicas then close what was opened over them."""
        await self._pool.stop()
        await self._server.stop()

    def update(self, descriptions: Sequence[Mapping[str, Any]]) -> None:
        """Take what the replicas say of themselves (`Stage.describe`) as the whole truth."""
        self._replicas = {
            d["replica_id"]: Replica(
                d["replica_id"], d["span"], d["address"], d["node"], d["free_slots"], d["slots"]
            )
            for d in descriptions
        }

    @property
    def complete(self) -> bool:
        """Whether every span has a replica."""
        return {replica.span for replica in self._replicas.values()} >= set(self._spans)

    def choose(self, sessions_by_replica: Mapping[str, int]) -> tuple[str, ...]:
        """A replica per span for a new session. Raises Refused(NO_CAPACITY)."""
        return place(self._spans, self._replicas.values(), sessions_by_replica)

    async def open(self, spec: SessionSpec, epoch: int, replicas: Sequence[str]) -> Lane:
        """Take a slot on each replica. Raises Refused or Fault; then, or when cancelled, no slot is held."""
        addresses = [self._known(replica_id).address for replica_id in replicas]
        links = [await self._link_to(replica_id) for replica_id in replicas]
        codec = FrameCodec(min(link.version for link in links), self._spans)
        lane = Lane(spec.session_id, epoch, tuple(replicas), tuple(links), codec)
        self._codecs[spec.session_id] = codec
        content = {"session": encode_spec(spec), "epoch": epoch, "version": codec.version}
        hops = zip(replicas, links, [*addresses[1:], self._address], strict=True)
        try:
            await asyncio.gather(*(self._open_at(r, link, {**content, "next": to}) for r, link, to in hops))
        except BaseException:
            self.close(lane)
            raise
        return lane

    def close(self, lane: Lane) -> None:
        """Give the lane's slots back."""
        if self._codecs.get(lane.session_id) is lane.codec:
            del self._codecs[lane.session_id]
        body = encode_json({"session_id": lane.session_id, "epoch": lane.epoch})
        for link in lane.links:
            with contextlib.suppress(LinkClosed):  # A replica that is gone holds no slot.
                link.send(Kind.CLOSE, body)

    def send_frame(self, lane: Lane, frame: Frame[NDArray[Any]]) -> int:
        """Send a frame into the lane; returns its bytes. Raises LinkClosed: the session is lost."""
        parts = lane.codec.encode(frame, time.monotonic())
        lane.links[0].send(Kind.FRAME, *parts)
        return sum(len(part) for part in parts)

    def send_settings(self, lane: Lane, version: int, settings: Settings) -> None:
        """Announce settings, before the first frame under them. Raises LinkClosed."""
        content = {
            "session_id": lane.session_id,
            "epoch": lane.epoch,
            "version": version,
            "settings": encode_settings(settings),
        }
        lane.links[0].send(Kind.SETTINGS, encode_json(content))

    def acknowledge(self, lane: Lane, ordinal: int) -> None:
        """Nothing up to `ordinal` will be asked for again. Raises LinkClosed. Links do not carry it yet."""

    def _known(self, replica_id: str) -> Replica:
        replica = self._replicas.get(replica_id)
        if replica is None:
            raise _gone()
        return replica

    async def _link_to(self, replica_id: str) -> Link:
        address = self._known(replica_id).address
        try:
            link = await self._pool.get(address)
        except LinkClosed:
            self._replicas.pop(replica_id, None)
            raise _gone() from None
        self._dialled[address] = replica_id
        return link

    async def _open_at(self, replica_id: str, link: Link, content: dict[str, Any]) -> None:
        try:
            async with asyncio.timeout(OPEN_TIMEOUT_S):
                reply = await link.request(Kind.OPEN, content)
        except (LinkClosed, TimeoutError):
            self._replicas.pop(replica_id, None)
            raise _gone() from None
        if reply.get("reason") == Reason.DRAINING.name:
            self._replicas.pop(replica_id, None)
        if "reason" in reply:
            raise _refusal(reply)

    def _on_message(self, link: Link, kind: Kind, body: bytes) -> None:
        if kind is Kind.FRAME:
            codec = self._codecs.get(frame_head(body)[0])
            if codec is not None:  # Else of a lane that was closed.
                self._on_frame(codec.decode(body, time.monotonic()))
        elif kind is Kind.LOST:
            content = decode_json(body)
            self._on_lane_lost(content["session_id"], content["epoch"])
        elif kind is Kind.DRAINING:
            self._forget(link)

    def _on_link_closed(self, link: Link) -> None:
        replica_id = self._forget(link)
        if replica_id is not None:
            del self._dialled[self._pool.address(link) or ""]
            self._on_replica_lost(replica_id)

    def _forget(self, link: Link) -> str | None:
        """No new session goes to the replica at the other end, until it describes itself again."""
        replica_id = self._dialled.get(self._pool.address(link) or "")
        if replica_id is not None:
            self._replicas.pop(replica_id, None)
        return replica_id


def _gone() -> Refused:
    return Refused(Reason.REPLICA_LOST, "a replica is gone", retry_after_s=RETRY_AFTER_S)


def _refusal(reply: Mapping[str, Any]) -> RearviewError:
    reason, metadata = Reason[reply["reason"]], reply["metadata"]
    if reason is Reason.INTERNAL:
        return Fault(metadata=metadata)
    return Refused(reason, reply["message"], retry_after_s=reply["retry_after_s"], metadata=metadata)
