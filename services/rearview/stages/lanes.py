"""The ingress's side of the stages: who is there, which lane a session gets, and frames over links.

`Lanes` knows replicas only by what they describe about themselves. It opens a session on one replica per
span, sends its frames to the first, takes its pictures from the last, and tells when a replica is lost.
"""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from rearview.config import LinkConfig
from rearview.engine.session import SessionSpec, Settings
from rearview.errors import Reason, Refused
from rearview.stages.links import Link, LinkClosed, LinkPool, LinkServer
from rearview.stages.placement import Replica, place
from rearview.stages.wire import (
    FrameMessage,
    Kind,
    decode_frame,
    encode_frame,
    encode_json,
    encode_settings,
    encode_spec,
)

__all__ = ["Lane", "Lanes"]

logger = logging.getLogger(__name__)

RETRY_AFTER_S = 1.0


@dataclass(frozen=True, slots=True)
class Lane:
    """A session's replicas, one per span, and the link to each."""

    session_id: str
    epoch: int
    replicas: tuple[str, ...]
    links: tuple[Link, ...]


class Lanes:
    """Replicas of all spans, as one ingress sees them. For one event loop."""

    def __init__(
        self,
        spans: Sequence[str],
        link: LinkConfig,
        node: str,
        *,
        on_frame: Callable[[FrameMessage], None],
        on_lost: Callable[[str], None],
    ) -> None:
        """`on_frame`: a picture has come back; `on_lost(replica_id)`: its sessions' state is gone."""
        self._spans = tuple(spans)
        self._on_frame, self._on_lost = on_frame, on_lost
        self._replicas: dict[str, Replica] = {}
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
        """Take a slot on each replica. Raises Refused; then no slot is held."""
        addresses = [self._known(replica_id).address for replica_id in replicas]
        try:
            links = tuple([await self._pool.get(address) for address in addresses])
        except LinkClosed:
            raise Refused(Reason.REPLICA_LOST, "a replica is gone", retry_after_s=RETRY_AFTER_S) from None
        lane = Lane(spec.session_id, epoch, tuple(replicas), links)
        content = {"session": encode_spec(spec), "epoch": epoch}
        hops = itertools.pairwise([*addresses, self._address])
        replies = await asyncio.gather(
            *(
                link.request(Kind.OPEN, {**content, "next": next_address})
                for link, (_, next_address) in zip(links, hops, strict=True)
            ),
            return_exceptions=True,
        )
        refusal = next(filter(None, map(_refusal, replies)), None)
        if refusal is not None:
            self.close(lane)
            raise refusal
        return lane

    def close(self, lane: Lane) -> None:
        """Give the lane's slots back."""
        body = encode_json({"session_id": lane.session_id, "epoch": lane.epoch})
        for link in lane.links:
            with contextlib.suppress(LinkClosed):  # A replica that is gone holds no slot.
                link.send(Kind.CLOSE, body)

    def send_frame(self, lane: Lane, message: FrameMessage) -> int:
        """Send a frame into the lane; returns its bytes. Raises LinkClosed: the session is lost."""
        parts = encode_frame(message)
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

    def _known(self, replica_id: str) -> Replica:
        replica = self._replicas.get(replica_id)
        if replica is None:
            raise Refused(Reason.REPLICA_LOST, "a replica is gone", retry_after_s=RETRY_AFTER_S)
        return replica

    def _on_message(self, link: Link, kind: Kind, body: bytes) -> None:
        if kind is Kind.FRAME:
            self._on_frame(decode_frame(body))
        elif kind is Kind.DRAINING:
            self._forget(link)

    def _on_link_closed(self, link: Link) -> None:
        replica_id = self._forget(link)
        if replica_id is not None:
            self._on_lost(replica_id)

    def _forget(self, link: Link) -> str | None:
        """No new session goes to the replica at the other end, until it describes itself again."""
        address = self._pool.address(link)
        replica = next((r for r in self._replicas.values() if r.address == address), None)
        if replica is None:
            return None
        del self._replicas[replica.replica_id]
        return replica.replica_id


def _refusal(reply: dict[str, Any] | BaseException) -> Exception | None:
    if isinstance(reply, LinkClosed):
        return Refused(Reason.REPLICA_LOST, "a replica is gone", retry_after_s=RETRY_AFTER_S)
    if isinstance(reply, BaseException):
        raise reply
    if "reason" not in reply:
        return None
    return Refused(Reason[reply["reason"]], reply["message"], retry_after_s=reply["retry_after_s"])
