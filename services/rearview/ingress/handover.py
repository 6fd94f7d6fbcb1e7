"""A parked session goes over to another ingress, which its client has found.

Its replicas have forgotten it. Two things are left, both at the ingress that parked it: its past, which the
replicas of the next lane pull from there, and its edge, which the ingress that takes it over pulls first: a
note, as a first span would have it, and the answers that the client may not have. What surprises: who parked
a session learns from the directory alone that it has gone, and keeps it until then.
"""

from __future__ import annotations

import struct
from collections.abc import AsyncGenerator, Mapping, Sequence
from contextlib import aclosing
from dataclasses import dataclass, replace
from typing import Any

from pydantic import TypeAdapter

from rearview.config import LinkConfig
from rearview.contract.lease import Lease
from rearview.contract.size import Size
from rearview.control.leases import on_its_way
from rearview.errors import DropReason, NotFound, Reason, Refused
from rearview.ingress.book import Book, Outcome, Receipt
from rearview.ingress.checkpoints import Checkpoints
from rearview.ingress.inherited import Inherited
from rearview.ingress.lane import Lane
from rearview.ingress.leases import Leases
from rearview.ingress.notes import Note
from rearview.ingress.pacing import PacerCounts
from rearview.ingress.placing import Placing
from rearview.ingress.session import IngressSession
from rearview.ingress.sessions import Sessions
from rearview.transport.bulk import pull
from rearview.transport.wire import encode_settings

__all__ = ["Handover", "Handovers"]

MAX_BYTES = 1 << 30
"""Of an edge: more than twice as many of the largest pictures as a client may leave unacknowledged."""
_LENGTH = struct.Struct("<I")


@dataclass(frozen=True, slots=True)
class _Kept:
    """An answer that the client may not have."""

    frame_index: int
    presentation_offset: tuple[int, int]
    num_bytes: int
    """Of its picture."""
    dropped: DropReason | None
    """Why there is none."""
    width: int = 0
    """Pixels of the picture. 0: an ingress of a release before does not say."""
    height: int = 0


@dataclass(frozen=True, slots=True)
class Handover:
    """The edge of a session that has nothing in flight. Frames without an outcome are not in it: its client
    sends them again.
    """

    note: Note
    """Its counters are those of all frames with an outcome, the last of which are `kept`."""
    has_checkpoint: bool
    """Else it has no past, and needs none."""
    kept: Sequence[_Kept]
    pictures: bytes
    """Of `kept`, one after the other."""

    @classmethod
    def of(cls, session: IngressSession) -> Handover:
        """That of a session that is parked."""
        book, note = session.book, session.notes.now
        answers = book.kept
        pictures = [answer.outcome for answer in answers if isinstance(answer.outcome, bytes)]
        state = replace(
            note.state,
            next_ordinal=session.feed.inputs.following,
            last_index=max([note.index, *(answer.receipt.frame_index for answer in answers)]),
            pacing=PacerCounts(book.released),
            similarity=session.state.similarity,
            translated=book.translated,
            dropped=book.dropped,
        )
        kept = [_kept(answer.receipt, answer.outcome) for answer in answers]
        past, has_checkpoint = session.past, session.past.checkpoint is not None
        return cls(replace(note, state=state, kernels=past.kernels), has_checkpoint, kept, b"".join(pictures))

    def to_bytes(self) -> bytes:
        """As it travels."""
        header = _HEADER.dump_json((self.note, self.has_checkpoint, self.kept))
        return _LENGTH.pack(len(header)) + header + self.pictures

    @classmethod
    def from_bytes(cls, content: bytes) -> Handover:
        """Undo `to_bytes`. Raises ValueError."""
        if len(content) < _LENGTH.size:
            raise ValueError("a handover has a header")
        end = _LENGTH.size + _LENGTH.unpack_from(content)[0]
        note, has_checkpoint, kept = _HEADER.validate_json(content[_LENGTH.size : end])
        sizes = [each.num_bytes for each in kept]
        if min(sizes, default=0) < 0 or sum(sizes) != len(content) - end:
            raise ValueError("the pictures of a handover are not as long as it says")
        if len(kept) > note.state.pacing.received:
            raise ValueError("a handover has more answers than frames have come")
        return cls(note, has_checkpoint, kept, content[end:])

    def begin(self, address: str, epoch: int) -> Mapping[str, Any]:
        """What replicas are told that open the session anew; `address`: of the ingress that has its past."""
        state = self.note.state
        if self.has_checkpoint:
            source = {"address": address, "session_id": self.note.spec.session_id, "epoch": epoch}
            return {"state": {"sources": [source], "start": state.next_ordinal}}
        settings = {str(state.lane_version): encode_settings(state.in_force)}
        return {"start": {"ordinal": state.next_ordinal, "settings": settings}}

    def inherited(self, now: float) -> Inherited:
        """What the session brings with it. All that is kept may be asked for."""
        state, outcomes = self.note.state, dict(self._outcomes(now))
        received = state.pacing.received
        book = Book.rebuilt(
            received=received,
            received_answers=received - len(self.kept),
            outcomes={receipt.place: outcome for receipt, outcome in outcomes.items()},
            receipts={receipt.place: receipt for receipt in outcomes},
            now=now,
        )
        book.translated, book.dropped = state.translated, state.dropped
        return Inherited(state, book, kernels=self.note.kernels)

    def _outcomes(self, now: float) -> Mapping[Receipt, Outcome]:
        outcomes: dict[Receipt, Outcome] = {}
        place, at = self.note.state.pacing.received - len(self.kept), 0
        for each in self.kept:
            numbers = place + len(outcomes), each.frame_index, each.presentation_offset
            receipt = Receipt(*numbers, now, size=Size(each.width, each.height))
            outcomes[receipt] = each.dropped or self.pictures[at : at + each.num_bytes]
            at += each.num_bytes
        return outcomes


def _kept(receipt: Receipt, outcome: Outcome) -> _Kept:
    index, offset = receipt.frame_index, receipt.presentation_offset
    if isinstance(outcome, DropReason):
        return _Kept(index, offset, 0, outcome, *receipt.size)
    return _Kept(index, offset, len(outcome), None, *receipt.size)


_HEADER = TypeAdapter(tuple[Note, bool, Sequence[_Kept]])


class Handovers:
    """Between this ingress and others. For one event loop."""

    def __init__(
        self,
        placing: Placing,
        leases: Leases,
        checkpoints: Checkpoints,
        sessions: Sessions,
        links: LinkConfig,
        node: str,
    ) -> None:
        """`sessions`, `links`, `node`: of this ingress."""
        self._placing, self._leases = placing, leases
        self._checkpoints, self._sessions = checkpoints, sessions
        self._links, self._node = links, node
        self._coming: set[str] = set()
        """Sessions that are being taken over."""

    async def source(self, request: Mapping[str, Any]) -> AsyncGenerator[bytes, None]:
        """What others pull from here: replicas a session's past, ingresses its edge if it is parked. Raises
        NotFound.
        """
        if not request.get("edge"):
            async for part in self._checkpoints.source(request):
                yield part
            return
        if request["session_id"] in self._coming:
            raise on_its_way()
        record = self._sessions.get(request["session_id"])
        if record is None:
            raise NotFound(Reason.SESSION_UNKNOWN, "that session is not parked here")
        if not record.session.past.is_parked:  # About to be, or fed again: whoever asks again finds it.
            raise on_its_way()
        yield Handover.of(record.session).to_bytes()

    async def take_over(self, parked: Lease, address: str) -> tuple[Handover, Lease, Lane]:
        """A session that is parked at the ingress at `address`; its lease and a lane.

        Raises NotFound, Refused and LeaseLost; it then stays there, if the directory can be told so.
        """
        handover = await self._pulled(parked, address)
        self._coming.add(parked.session_id)
        try:
            taken = await self._leases.take(parked)
            self._leases.keep(taken)
            begin, note = handover.begin(address, parked.epoch), handover.note
            lease, lane = await self._placing.place_again(note.spec, taken, note.state.settings, begin)
        except BaseException:
            await self._leases.hand_back(parked)
            raise
        finally:
            self._coming.discard(parked.session_id)
        return handover, lease, lane

    async def _pulled(self, parked: Lease, address: str) -> Handover:
        request = {"session_id": parked.session_id, "epoch": parked.epoch, "edge": True}
        content = bytearray()
        parts = pull(self._links, self._node, address, request)
        async with aclosing(parts):
            async for part in parts:
                content += part
                if len(content) > MAX_BYTES:
                    raise _unreadable()
        try:
            return Handover.from_bytes(bytes(content))
        except ValueError:
            raise _unreadable() from None


def _unreadable() -> Refused:
    text = "what the ingress says at which the session is parked cannot be read"
    return Refused(Reason.REPLICA_LOST, text, retry_after_s=1.0)
