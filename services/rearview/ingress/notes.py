"""What a session leaves at its first span, so that another ingress can go on when this one is gone.

Frames tell most of it: places, ordinals, the client's numbers. A *note* tells the rest: what was agreed, the
settings as the client has asked for them, how the lane knows them, and where they are in use warm-ups,
scenes and the last thumbnails. One goes ahead of the frame with which it begins to hold, on the same link: a
span that has the frame has the note. What surprises: a note is about the last frame that was admitted. The
span is told besides which frames were dropped (`left.py`). What came after these the client sends again, so
that it is looked at anew.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

from pydantic import TypeAdapter

from rearview.config import TenantConfig
from rearview.contract.frame import NO_PLACE
from rearview.contract.session import SessionSpec
from rearview.ingress.feed import Feed
from rearview.ingress.intake import Admitted
from rearview.ingress.options import SessionOptions, Terms
from rearview.ingress.pacing import PacerCounts
from rearview.ingress.state import EdgeState

__all__ = ["Note", "Notes"]


@dataclass(frozen=True, slots=True)
class Note:
    """What an ingress must know to go on for another one, apart from what frames tell."""

    spec: SessionSpec
    options: SessionOptions
    warm_up_frames: int
    forgets: bool
    state: EdgeState
    """After the last frame that was admitted. Numbers in it that frames tell are of no meaning."""
    place: int = NO_PLACE
    """Of the last frame that was admitted before the note begins to hold, or that an ingress before knew."""
    index: int = -1
    """The client's number of that frame."""
    kernels: tuple[str, ...] = ()
    """Of a session without a lane, what its last one computed with (`Lane.kernels`)."""

    def terms(self, tenant: TenantConfig, resume_token: str) -> Terms:
        """What was agreed with `tenant`."""
        return Terms(self.spec, self.options, tenant, self.warm_up_frames, self.forgets, resume_token)

    def to_json(self) -> str:
        """As text: some hundred bytes, and two thumbnails where they are in use."""
        return _NOTE.dump_json(self).decode()

    @classmethod
    def from_json(cls, text: str) -> Note:
        """Undo `to_json`, exactly. Raises ValueError."""
        return _NOTE.validate_json(text)


_NOTE = TypeAdapter(Note)


class Notes:
    """Keeps the note of one session up to date."""

    def __init__(self, terms: Terms, feed: Feed, state: Callable[[], EdgeState]) -> None:
        """Leaves the first note. `state`: that of the session now."""
        self._feed, self._state = feed, state
        self._warms_up = terms.spec.cache is not None
        self._begins, now = -1, state()
        self._last = (now.pacing.received - 1, now.last_index)
        """Place and index of the last frame that was admitted, or that an ingress before knew."""
        self._note = Note(terms.spec, terms.options, terms.warm_up_frames, terms.forgets, now)
        self.again()

    @property
    def now(self) -> Note:
        """As another ingress would have it, once every frame that was admitted has come back."""
        place, index = self._last
        return replace(self._note, place=place, index=index)

    def admitted(self, admitted: Admitted) -> None:
        """A frame is about to be sent into the lane, with its fillers."""
        state, receipt = self._state(), admitted.waiting.receipt
        begins, (place, index) = admitted.numbers.completing.start, self._last
        self._last = (receipt.place, receipt.frame_index)
        self._leave(replace(self._note, state=state, place=place, index=index), begins)

    def changed(self) -> None:
        """The client has asked for other settings."""
        self._renew(replace(self._note.state, settings=self._state().settings))

    def came_back(self) -> None:
        """A frame has left the lane: a warm-up may be over, or begin anew."""
        if self._warms_up:
            self._renew(replace(self._note.state, warm_up=self._state().warm_up))

    def forgot(self) -> None:
        """A frame that the next ones were to be compared with has no picture."""
        self._renew(replace(self._note.state, similarity=self._state().similarity))

    def again(self) -> None:
        """Leave the note at a first span that has none."""
        self._begins, self._note = -1, self.now
        self._feed.note(self._begins, self._note.to_json())

    def _renew(self, state: EdgeState) -> None:
        place, index = self._last
        self._leave(replace(self._note, state=state, place=place, index=index), self._begins)

    def _leave(self, note: Note, begins: int) -> None:
        told, self._note = _untold_by_frames(self._note.state), note
        if _untold_by_frames(note.state) != told:
            self._begins = begins
            self._feed.note(begins, note.to_json())


def _untold_by_frames(state: EdgeState) -> EdgeState:
    """Equal for states between which frames tell the difference."""
    return replace(state, next_ordinal=0, last_index=-1, pacing=PacerCounts(), translated=0, dropped=0)
