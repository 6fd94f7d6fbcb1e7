"""A lane is frozen at one ordinal on every span, and thawed."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from rearview.errors import Reason, Refused
from rearview.ingress.lane import Lane
from rearview.transport.links import Link, LinkClosed
from rearview.transport.refusal import refused
from rearview.transport.wire import Kind, encode_json

__all__ = ["Frozen", "freeze", "thaw"]

TIMEOUT_S = 5.0


@dataclass(frozen=True, slots=True)
class Frozen:
    """Where a lane stands still."""

    ordinal: int
    """The last one that runs. It may be later than asked for: the rest of a warm-up has to come then."""
    num_bytes: int
    """Of the session's past, on all spans together."""


async def freeze(lane: Lane, ordinal: int) -> Frozen:
    """Run frames up to `ordinal`, the last one sent, and hold later ones. Raises RearviewError; the lane is
    to be thawed then too.
    """
    while True:
        replies = await asyncio.gather(*(_freeze(link, lane, ordinal) for link in lane.links))
        latest = max(reply["ordinal"] for reply in replies)
        if all(reply["ordinal"] == latest for reply in replies):
            return Frozen(latest, sum(reply["num_bytes"] for reply in replies))
        ordinal = latest  # One knows of a warm-up that the others do not see yet.


def thaw(lane: Lane) -> None:
    """Whatever was frozen runs again; nothing happens where it was not, or has gone."""
    body = encode_json({"session_id": lane.session_id, "epoch": lane.epoch})
    for link in lane.links:
        with contextlib.suppress(LinkClosed):
            link.send(Kind.THAW, body)


async def _freeze(link: Link, lane: Lane, ordinal: int) -> Mapping[str, Any]:
    if not link.knows(Kind.FREEZE):
        raise Refused(Reason.REPLICA_LOST, "the replica is too old to move sessions", retry_after_s=1.0)
    request = {"session_id": lane.session_id, "epoch": lane.epoch, "ordinal": ordinal}
    try:
        async with asyncio.timeout(TIMEOUT_S):
            reply = await link.request(Kind.FREEZE, request)
    except (LinkClosed, TimeoutError):
        raise Refused(Reason.REPLICA_LOST, "a replica is gone", retry_after_s=1.0) from None
    if "reason" in reply:
        raise refused(reply)
    return reply
