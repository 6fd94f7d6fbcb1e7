"""A session of another ingress, which is dead, frozen or alive, goes on at this one.

    lease in force ─► compare-and-set its epoch ─► adopt the lane, last span first ─► rebuild the book
                 └─ it is parked: handover.py

The directory knows tenant, lane, epoch and a hash of the resume token; the first span has the note that the
former owner left there, and knows what was admitted; the last one sends its kept pictures again. What
surprises: once the lease is taken the adoption goes on without whoever asked for it, who may have given up
and asked elsewhere: half of it done would end the session.
"""

from __future__ import annotations

import asyncio
import hmac
import logging
import time
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from numpy.typing import NDArray

from rearview.config import TenantConfig
from rearview.contract.frame import Frame
from rearview.contract.lease import Lease, Owner
from rearview.contract.stream import ImageFormat
from rearview.control.adoption import LaneStanding, SpanStanding
from rearview.directory.protocol import LeaseLost
from rearview.errors import DropReason, InvalidRequest, NotFound, RearviewError, Reason, Refused, out_of_range
from rearview.ingress.book import RETAINED_ANSWERS, Book, Receipt
from rearview.ingress.feed import Sent
from rearview.ingress.handover import Handovers
from rearview.ingress.inherited import Inherited
from rearview.ingress.intake import Admitted, FrameIn, Waiting
from rearview.ingress.lane import Lane
from rearview.ingress.lanes import Lanes
from rearview.ingress.leases import Leases
from rearview.ingress.notes import Note
from rearview.ingress.options import Terms, token_sha256
from rearview.ingress.ordinals import Numbers
from rearview.ingress.pacing import PacerCounts
from rearview.ingress.sessions import Record
from rearview.ingress.state import EdgeState

__all__ = ["Adoptions", "Resumption", "rebuilt"]

logger = logging.getLogger(__name__)

MAX_PLACE = 1 << 62
"""No session receives so many frames, and links carry such numbers."""
TAKES = 3
"""How often a lease is asked for that changes hands meanwhile: a client that gave up elsewhere left it so."""
REFRESH_TIMEOUT_S = 1.0
"""How long replicas are asked who they are if one of the session's is not known."""
RETRY_AFTER_S = 1.0
AGAIN_S = 0.05
"""A session that is parked can be had from the ingress that has parked it."""
OPENING_TRIES = 20
"""How often a lane is asked for that the directory has noted, and that its replicas are still to open."""
_REASONS = {reason.value: reason for reason in DropReason}
"""As a lane is told of them; a later release may know others."""

Begin = Callable[[Terms, Lease, Lane, Inherited], Record]
"""Makes a session of what is known, whose connection is lost."""


@dataclass(frozen=True, slots=True)
class Resumption:
    """What a client says that continues a session."""

    session_id: str
    token: str
    received_answers: int
    """How many answers it has."""
    unanswered: Sequence[int] = ()
    """Its numbers of the frames that it has sent after those; it need not say so."""


class Adoptions:
    """Takes sessions over. For one event loop."""

    def __init__(
        self,
        lanes: Lanes,
        leases: Leases,
        handovers: Handovers,
        *,
        refresh: Callable[[float], Awaitable[None]],
        begin: Begin,
    ) -> None:
        """`refresh(timeout_s)` asks the replicas who they are."""
        self._lanes, self._leases, self._handovers = lanes, leases, handovers
        self._refresh, self._begin = refresh, begin
        self._under_way: dict[str, asyncio.Task[Record]] = {}
        self._early: dict[str, list[Frame[NDArray[Any]]]] = {}
        """Pictures that come before their session is made."""

    async def adopt(self, tenant: TenantConfig, asked: Resumption) -> Record:
        """The session, detached. Raises NotFound, InvalidRequest(RESUME_TOKEN_INVALID), LeaseLost if another
        ingress takes it at the same time, and Refused; goes on when cancelled.
        """
        if asked.received_answers >= MAX_PLACE:
            raise out_of_range("received_answers", "no session has so many answers")
        owner = await self._owner(tenant, asked)
        task = self._under_way.get(asked.session_id)
        if task is None:
            from_ = self._take_over if owner.lease.lane else self._wake
            task = asyncio.create_task(from_(tenant, asked, owner))
            self._under_way[asked.session_id] = task
            task.add_done_callback(lambda done: self._done(asked.session_id, done))
        return await asyncio.shield(task)

    def on_frame(self, frame: Frame[NDArray[Any]]) -> None:
        """A picture has come of a session that is not fed here."""
        early = self._early.get(frame.session_id)
        if early is not None:
            early.append(frame)

    async def stop(self) -> None:
        """Give up what is under way."""
        tasks = tuple(self._under_way.values())
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    async def _owner(self, tenant: TenantConfig, asked: Resumption) -> Owner:
        owner = await self._leases.owner_of(asked.session_id)
        if owner is None or owner.lease.tenant != tenant.name:
            raise unknown()
        if not hmac.compare_digest(owner.lease.token_sha256, token_sha256(asked.token)):
            raise wrong_token()
        return owner

    async def _wake(self, tenant: TenantConfig, asked: Resumption, owner: Owner) -> Record:
        """From the ingress at which it is parked."""
        if owner.address is None:  # That one is gone, and the session with it.
            raise unknown()
        handover, lease, lane = await self._handovers.take_over(owner.lease, owner.address)
        terms = handover.note.terms(tenant, asked.token)
        # No word can come between: a session has its lane and its lease.
        return self._begin(terms, lease, lane, handover.inherited(time.monotonic()))

    async def _take_over(self, tenant: TenantConfig, asked: Resumption, owner: Owner) -> Record:
        """From the replicas of its lane."""
        lease = owner.lease
        if not self._lanes.knows(lease.lane):
            await self._refresh(REFRESH_TIMEOUT_S)
        if not self._lanes.knows(lease.lane):
            raise Refused(Reason.REPLICA_LOST, "a replica is gone", retry_after_s=RETRY_AFTER_S)
        await self._opened(lease)
        taken = await self._take(tenant, asked, lease)
        self._early[asked.session_id] = []
        try:
            while True:
                try:
                    lane, replies = await self._lanes.attach(taken)
                except Refused as error:
                    taken = await self._take_anew(taken, error)
                    continue
                try:
                    # No word can come between: what came before is held, what comes now finds its session.
                    return self._go_on(tenant, asked, taken, lane, replies)
                except BaseException:
                    self._lanes.close(lane)
                    raise
        except NotFound:
            await self._leases.release(taken)
            raise unknown() from None
        finally:
            del self._early[asked.session_id]

    async def _opened(self, lease: Lease) -> None:
        """Return when the session can be adopted, or it takes too long. Before that, whoever opens its lane
        would be fenced, and the session lost.
        """
        for _ in range(OPENING_TRIES):
            if await self._lanes.is_open(lease):
                return
            await asyncio.sleep(AGAIN_S)

    async def _take(self, tenant: TenantConfig, asked: Resumption, lease: Lease) -> Lease:
        for _ in range(TAKES - 1):
            try:
                return await self._leases.take(lease)
            except LeaseLost:
                lease = (await self._owner(tenant, asked)).lease
                if not lease.lane:
                    text = "the session was parked meanwhile"
                    raise Refused(Reason.REPLICA_LOST, text, retry_after_s=AGAIN_S) from None
        return await self._leases.take(lease)

    async def _take_anew(self, taken: Lease, error: Refused) -> Lease:
        """The lease under an epoch that replicas take: they know newer ones than a store that has lost some.
        Raises `error` if that is not it.
        """
        seen = int(error.metadata.get("epoch", 0))
        if error.reason is not Reason.TAKEN_OVER or seen < taken.epoch:
            raise error
        owner = await self._leases.owner_of(taken.session_id)
        if owner is None or owner.lease.epoch != taken.epoch:
            raise error  # Another ingress has it.
        return await self._leases.take(taken, min_epoch=seen)

    def _go_on(
        self,
        tenant: TenantConfig,
        asked: Resumption,
        lease: Lease,
        lane: Lane,
        replies: Sequence[Mapping[str, Any]],
    ) -> Record:
        try:
            standing = LaneStanding.of([SpanStanding.told(reply) for reply in replies])
            note = None if standing.note is None else Note.from_json(standing.note)
        except (LookupError, TypeError, ValueError) as error:  # Another release has written it.
            logger.warning("what a lane tells of its session cannot be read", exc_info=error)
            raise unknown() from None
        if note is None or not standing.is_whole:
            raise unknown()
        inherited = rebuilt(note, standing, asked, time.monotonic())
        record = self._begin(note.terms(tenant, asked.token), lease, lane, inherited)
        for frame in self._early[asked.session_id]:
            record.session.on_frame(frame)
        return record

    def _done(self, session_id: str, task: asyncio.Task[Record]) -> None:
        del self._under_way[session_id]
        if not task.cancelled() and (error := task.exception()) is not None:
            logger.info("a session was not taken over: %s", type(error).__name__)


def rebuilt(note: Note, standing: LaneStanding, asked: Resumption, now: float) -> Inherited:
    """The session's past, from what the lane and its client know of it.

    Every place from `received_answers` to the last that was admitted, or is known to have been left out after
    it, has one outcome: the picture that comes, the reason that the lane was told, or DropReason.FAULT. Later
    ones the client sends again. What the former owner has answered too was counted there.
    """
    admitted = max((standing.place, standing.index), (note.place, note.index))
    dropped = {
        place: (index, _REASONS.get(why, DropReason.FAULT))
        for place, (index, why) in standing.dropped.items()
    }
    received = max(admitted[0] + 1, asked.received_answers)
    while received in dropped:
        received += 1
    # Of a client that claims to have fewer answers than anybody keeps: its resume will be refused.
    first = max(asked.received_answers, received - 2 * RETAINED_ANSWERS)
    left_out = [why for place, why in dropped.items() if admitted[0] < place < received]
    state = _state(note, standing.next_ordinal, admitted[1], received, first, left_out)
    owed, indices = standing.owed(first), asked.unanswered[first - asked.received_answers :]
    receipts = {
        place: _receipt(place, first, indices, now, is_counted=ordinal in standing.answered)
        for ordinal, place in owed.items()
    }
    outcomes = {place: reason for place, (_, reason) in dropped.items() if place not in receipts}
    numbers = {place: Receipt(place, index, (0, 0), now) for place, (index, _) in dropped.items()}
    book = Book.rebuilt(
        received=received,
        outcomes=outcomes,
        received_answers=first,
        now=now,
        receipts=numbers | receipts,
        indices=indices,
        counted=dropped.keys(),
    )
    book.translated, book.dropped = state.translated, state.dropped + book.dropped
    in_lane = {ordinal: _sent(ordinal, receipts[place], note, now) for ordinal, place in owed.items()}
    return Inherited(state, book, in_lane, dropped)


def unknown() -> NotFound:
    """There is no such session, or it is another tenant's."""
    return NotFound(Reason.SESSION_UNKNOWN, "there is no such session")


def wrong_token() -> RearviewError:
    """Whoever asks may not resume the session."""
    return InvalidRequest(Reason.RESUME_TOKEN_INVALID, "the resume token is not the session's")


def _state(
    note: Note,
    next_ordinal: int,
    last_index: int,
    received: int,
    answered: int,
    left_out: Sequence[tuple[int, DropReason]],
) -> EdgeState:
    """`left_out`: of the frames after the last one that was admitted the client's number, and why."""
    dropped, similarity = min(note.state.dropped, answered), note.state.similarity
    unchanged = [index for index, why in left_out if why is DropReason.UNCHANGED]
    return replace(
        note.state,
        next_ordinal=next_ordinal,
        last_index=max([last_index, *unchanged]),
        similarity=replace(similarity, skipped=similarity.skipped + len(unchanged)),
        pacing=PacerCounts(received),
        translated=answered - dropped,
        dropped=dropped,
    )


def _receipt(place: int, first: int, indices: Sequence[int], now: float, *, is_counted: bool) -> Receipt:
    """Of a frame in the lane: what the client does not tell, the frame will."""
    at = place - first
    index = indices[at] if at < len(indices) else place
    return Receipt(place, index, (0, 0), now, is_counted=is_counted)


def _sent(ordinal: int, receipt: Receipt, note: Note, now: float) -> Sent:
    """A frame that somebody else has sent: its age is not known, so that it is not late."""
    frame = FrameIn(receipt.frame_index, receipt.presentation_offset, ImageFormat.OPAQUE, b"", now)
    numbers = Numbers(range(ordinal, ordinal), range(ordinal, ordinal), ordinal, warms_up=True)
    state = note.state
    waiting = Waiting(frame, receipt, state.settings)
    return Sent(Admitted(waiting, numbers, state.in_force, state.lane_version, now, float("inf")), 0.0)
