"""What an ingress concludes that takes a session over: what will still come, and what is lost.

It asks every span where the session stands. The first knows which frames were admitted, the last keeps
answers until they are acknowledged, and between them each keeps what the next one may lack. Pure.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

__all__ = ["LaneStanding", "SpanStanding"]


@dataclass(frozen=True, slots=True)
class SpanStanding:
    """Where a session stands on one span, as it was adopted."""

    place: int
    """The highest place among the frames that came."""
    index: int
    """The client's number of that frame."""
    expected: int
    """The next ordinal to let in."""
    here: Mapping[int, int]
    """Frames that are in flight, or whose output is kept and has been sent again: ordinal to place."""
    notes: Sequence[tuple[int, str]] = ()
    """What the former owner has left, oldest first: from which ordinal on each holds, and its text."""
    went: frozenset[int] = frozenset()
    """Ordinals among `here` that the hop after it was sent before."""
    dropped: Mapping[int, tuple[int, int]] = field(default_factory=dict)
    """Frames that the former owner dropped before they came, by place: the client's number, and why."""

    @classmethod
    def told(cls, reply: Mapping[str, Any]) -> SpanStanding:
        """As a replica tells it. Raises KeyError, TypeError or ValueError for what is no such reply."""
        here = {int(ordinal): int(place) for place, ordinal in (*reply["retained"], *reply["coming"])}
        notes = [(int(begins), str(text)) for begins, text in reply.get("notes", ())]
        retained = [ordinal for _, ordinal in reply["retained"]]
        went = frozenset(map(int, reply.get("went", retained)))  # A replica of version 1 does not say.
        dropped = {int(place): (int(index), int(why)) for place, index, why in reply.get("dropped", ())}
        index, expected = int(reply.get("index", -1)), int(reply["expected"])
        return cls(int(reply["place"]), index, expected, here, notes, went, dropped)


@dataclass(frozen=True, slots=True)
class LaneStanding:
    """Where it stands on a lane."""

    next_ordinal: int
    """The one to give next."""
    place: int
    index: int
    """Of the last frame that the first span has."""
    coming: Mapping[int, int]
    """Ordinal to place, in order of ordinals: what comes out of the last span from now on. The place of a
    filler is below 0."""
    is_whole: bool
    """Whether no ordinal is missing: for one that is, a span would wait for ever."""
    note: str | None
    """The last note that holds; None: there is none."""
    answered: frozenset[int] = frozenset()
    """Ordinals among `coming` that came to the former owner too, who has counted them."""
    dropped: Mapping[int, tuple[int, int]] = field(default_factory=dict)
    """Frames that it dropped, and has counted, by place: the client's number, and why."""

    @classmethod
    def of(cls, spans: Sequence[SpanStanding]) -> LaneStanding:
        """`spans`: in the order of the chain."""
        first = spans[0]
        next_ordinal = max([first.expected - 1, *first.here]) + 1
        coming: dict[int, int] = {}
        is_whole = True
        for span in spans:
            # What the span has passed on does not come again, unless it has kept it.
            coming = {o: p for o, p in coming.items() if o >= span.expected} | dict(span.here)
            is_whole = is_whole and coming.keys() >= set(range(span.expected, next_ordinal))
        note = next((text for begins, text in reversed(first.notes) if begins < next_ordinal), None)
        coming = dict(sorted(coming.items()))
        answered, dropped = spans[-1].went, first.dropped
        return cls(next_ordinal, first.place, first.index, coming, is_whole, note, answered, dropped)

    def owed(self, received_answers: int) -> Mapping[int, int]:
        """Those of `coming` that answer frames of which the client has no answer."""
        return {ordinal: place for ordinal, place in self.coming.items() if place >= received_answers}
