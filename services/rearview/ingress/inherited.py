"""What a session brings with it when it begins at this ingress: nothing, or what another one has left."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from rearview.errors import DropReason
from rearview.ingress.book import Book
from rearview.ingress.feed import Sent
from rearview.ingress.options import Terms
from rearview.ingress.state import EdgeState

__all__ = ["Inherited"]


@dataclass(frozen=True, slots=True)
class Inherited:
    """The durable part of a session, and what is in flight."""

    state: EdgeState
    book: Book
    in_lane: Mapping[int, Sent] = field(default_factory=dict)
    """Frames that will come back, by ordinal."""
    dropped: Mapping[int, tuple[int, DropReason]] = field(default_factory=dict)
    """What other ingresses have told of frames that never came, by place: the client's number, and why."""
    kernels: tuple[str, ...] = ()
    """What its last lane computed with, if it has none; else empty."""

    @classmethod
    def none(cls, terms: Terms) -> Inherited:
        """That of a new session."""
        return cls.answered(EdgeState.at_open(terms))

    @classmethod
    def answered(cls, state: EdgeState) -> Inherited:
        """Every frame is answered, and the client has the answers."""
        first = state.pacing.received
        return cls(state, Book(first=first, translated=state.translated, dropped=state.dropped))
