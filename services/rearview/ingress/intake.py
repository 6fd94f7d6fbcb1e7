"""From what a client sends to what enters the lane: who waits, who is dropped, and under what settings.

The intake decides, apart from I/O: whoever holds it decodes what `take` gives and shows it to `admit`, which
finds the frame's scene, leaves out what looks like the frame before, and gives the ordinal. Pure, in virtual
time: `now` is an argument. What surprises: an outcome that is known here, a drop, is returned and forgotten;
the book keeps it.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace

from rearview.config import LimitsConfig
from rearview.contract.blending import is_blending, settings_under
from rearview.contract.settings import Settings
from rearview.contract.stream import ImageFormat
from rearview.contract.warmup import LaneWarmUp
from rearview.errors import DropReason
from rearview.ingress.book import Receipt
from rearview.ingress.options import Terms
from rearview.ingress.ordinals import Numbers, Ordinals
from rearview.ingress.pacing import Pacer
from rearview.ingress.scene import SceneDetector
from rearview.ingress.similarity import SimilarityFilter, Thumbnail, Under
from rearview.ingress.state import EdgeState

__all__ = ["Admitted", "ControlIn", "FrameIn", "Intake", "Waiting"]


@dataclass(frozen=True, slots=True)
class ControlIn:
    """What a control is shown of a frame, as it came with it."""

    name: str
    """Of the control."""
    format: ImageFormat | None
    """None: it is not known."""
    image: bytes


@dataclass(frozen=True, slots=True)
class FrameIn:
    """A frame from the client, not yet looked into."""

    frame_index: int
    presentation_offset: tuple[int, int]
    """Seconds and nanoseconds, echoed."""
    format: ImageFormat
    image: bytes
    received_s: float
    """Monotonic."""
    controls: tuple[ControlIn, ...] = ()

    @property
    def num_bytes(self) -> int:
        """Of its images."""
        return len(self.image) + sum(len(one.image) for one in self.controls)

    def under(self, settings: Settings) -> FrameIn:
        """With pictures of those controls alone that act under `settings`, in the order of their names."""
        if not self.controls:
            return self
        sent = {one.name: one for one in self.controls}
        acting = tuple(sent[one.name] for one in settings.acting_controls if one.name in sent)
        return replace(self, controls=acting)


@dataclass(frozen=True, slots=True)
class Waiting:
    """A frame that waits for its turn, with the settings that it came under."""

    frame: FrameIn
    """With pictures of controls that act on it."""
    receipt: Receipt
    settings: Settings

    @property
    def shown_digest(self) -> int | None:
        """A number for what came with it and acts; None if nothing did. A millisecond for each megabyte."""
        if not self.frame.controls:
            return None
        digest = hashlib.blake2b(digest_size=6)
        for one in self.frame.controls:
            digest.update(f"{one.name}/{len(one.image)}/".encode())
            digest.update(one.image)
        return int.from_bytes(digest.digest(), "little")


@dataclass(frozen=True, slots=True)
class Admitted:
    """A frame that goes into the lane."""

    waiting: Waiting
    numbers: Numbers
    settings: Settings
    """In force: with its scene and the blend under way."""
    settings_version: int
    """The number by which the lane knows them."""
    started_s: float
    deadline_s: float

    @property
    def budget_s(self) -> float:
        """What it has in the lane."""
        return self.deadline_s - self.started_s


Dropped = Sequence[tuple[int, DropReason]]
"""Places of frames that will have no picture, and why."""


class Intake:
    """The frames of one session until they enter its lane."""

    def __init__(
        self, terms: Terms, limits: LimitsConfig, state: EdgeState, in_lane: Iterable[int] = ()
    ) -> None:
        """Goes on from `state`; `in_lane`: ordinals of its frames that have not come back."""
        options, under_way = terms.options, tuple(in_lane)
        self._options = options
        self._instant = terms.instant_start
        self._pacer: Pacer[Waiting] = Pacer(
            options.policy,
            limits.max_in_flight,
            limits.max_waiting,
            options.frame_budget_s,
            state.pacing,
            len(under_way),
        )
        similarity = options.similarity
        self._filter = None if similarity is None else SimilarityFilter(similarity, state.similarity)
        self._scenes = SceneDetector(state.scenes) if terms.detects_scenes else None
        self._warm_up = LaneWarmUp.of(
            terms.warm_up_frames, terms.spec.cache, state.warm_up, instant=self._instant
        )
        self._ordinals = Ordinals(self._warm_up, state.next_ordinal, under_way)
        self._state = state
        """Where it started; fields that have no other home are kept up to date."""
        self._asked = replace(state.in_force, blend=None)
        """What the client wanted for the last frame that was admitted, with the frame's scene."""
        self._last_index = state.last_index
        self._ends = False
        """Whether the client has said that no frame will follow."""
        self._pace()

    # What the client does.

    def apply(self, settings: Settings) -> None:
        """Frames received from now on are translated under `settings`."""
        self._state = replace(self._state, settings=settings)

    def receive(self, frame: FrameIn, receipt: Receipt, refusal: DropReason | None) -> Dropped:
        """A frame has come; `refusal` is why it cannot be used. Raises Refused(CREDIT_EXCEEDED)."""
        self._ends = False
        if refusal is None and frame.frame_index <= self._last_index:
            refusal = DropReason.INDEX_NOT_INCREASING
        if refusal is not None:
            self._pacer.rejected()
            return [(receipt.place, refusal)]
        settings = self._state.settings
        waiting = Waiting(frame.under(settings), receipt, settings)
        dropped = self._pacer.offer(waiting, frame.received_s)
        self._last_index = frame.frame_index
        return [(one.receipt.place, reason) for one, reason in dropped]

    def finish(self) -> None:
        """No frame will follow: a warm-up that is under way gets fillers."""
        self._ends = True

    # The way of a frame.

    def take(self, now: float) -> tuple[Waiting | None, Dropped]:
        """The next frame to decode, None if none can start; and frames that are now too old.

        A frame that is returned is to be handed to `admit` or `spoiled`, before the next one is taken.
        """
        taken, dropped = self._pacer.take(now)
        return taken, [(one.receipt.place, reason) for one, reason in dropped]

    def admit(
        self, waiting: Waiting, seen: Thumbnail | None, now: float, shown: int | None = None
    ) -> Admitted | None:
        """Let a decoded frame in, or None: it is left out as unchanged. `seen`: None if `looks` is False, and
        `shown` then says nothing: it is the frame's `shown_digest`.
        """
        settings = waiting.settings
        if self._scenes is not None and seen is not None:
            settings = replace(settings, scene=self._scenes.see(seen))
        if self._is_unchanged(seen, shown, waiting, settings):
            if self._scenes is not None:
                self._scenes.forget()
            self.spoiled()
            return None
        numbers = self._ordinals.admit(settings)
        self._put_in_force(settings, numbers.first)
        self._pace()
        return Admitted(
            waiting,
            numbers,
            self._state.in_force,
            self._state.lane_version,
            started_s=now,
            deadline_s=waiting.receipt.received_s + self._options.budget_s,
        )

    def spoiled(self) -> None:
        """A frame that was taken does not enter the lane."""
        self._pacer.finished()
        self._pace()

    def came_back(self, ordinal: int, *, lost: bool) -> None:
        """An ordinal has left the lane, `lost` without a picture."""
        if self._ordinals.came_back(ordinal, lost=lost):
            self._pacer.finished()
        self._pace()

    def restart(self, ordinal: int) -> None:
        """The lane begins anew at that ordinal, with an empty past: a cache warms up again."""
        self._warm_up.restart(ordinal)
        self._pace()

    def judge(self, admitted: Admitted, now: float, *, lost: bool) -> DropReason | None:
        """Why a frame that has come back is answered without a picture; None if it has one."""
        received_s, waited = admitted.waiting.receipt.received_s, admitted.numbers.warms_up
        if not lost and (waited or not self._pacer.is_late(received_s, now)):
            return None
        if self._filter is not None:
            self._filter.forget()
        return DropReason.FAULT if lost else DropReason.LATE

    def fill_up(self, *, is_exhausted: bool) -> range:
        """Fillers that complete a warm-up for which no frame will come: the client has ended, or may send no
        more (`is_exhausted`), or waits for the answer of the only one.
        """
        if not (self._ends or is_exhausted or self._instant):
            return range(0)
        if not (self.starves or (self._ends and self._is_idle)):
            return range(0)
        fillers = self._ordinals.complete()
        self._pace()
        return fillers

    # What others ask.

    @property
    def looks(self) -> bool:
        """Whether anybody looks at thumbnails."""
        return self._filter is not None or self._scenes is not None

    @property
    def settings(self) -> Settings:
        """What frames received from now on are translated under."""
        return self._state.settings

    @property
    def credit(self) -> int:
        """Frames that the client may have sent in all, as far as their number in flight counts."""
        return self._pacer.credit()

    @property
    def warm_up_frames(self) -> int:
        """Frames that are received before the first of them is answered."""
        return 1 if self._instant else max(1, self._warm_up.frames)

    @property
    def warm_up_missing(self) -> int:
        """Frames that a warm-up waits for and that have not been let in."""
        return self._ordinals.missing

    @property
    def starves(self) -> bool:
        """Whether nothing happens until the client sends more: all that is owed waits for a warm-up."""
        return self._is_idle and self._ordinals.starves

    @property
    def may_repeat(self) -> bool:
        """Whether fillers may yet have to repeat the last frame."""
        return self._ordinals.may_repeat

    def state(self, translated: int, dropped: int) -> EdgeState:
        """The session's durable part, with the book's counters."""
        return replace(
            self._state,
            next_ordinal=self._ordinals.next,
            last_index=self._last_index,
            pacing=self._pacer.counts,
            translated=translated,
            dropped=dropped,
            warm_up=self._warm_up.state,
            similarity=self._state.similarity if self._filter is None else self._filter.state,
            scenes=self._state.scenes if self._scenes is None else self._scenes.state,
        )

    @property
    def _is_idle(self) -> bool:
        """Whether no frame waits or is on its way into the lane."""
        return not self._pacer.waiting() and self._pacer.in_flight() == self._ordinals.in_lane

    def _is_unchanged(
        self, seen: Thumbnail | None, shown: int | None, waiting: Waiting, settings: Settings
    ) -> bool:
        if self._filter is None or seen is None:
            return False
        # Every frame of a blend is under another mix; frames of a warm-up are waited for.
        ordinal = self._ordinals.next
        alone = is_blending(self._state.in_force, ordinal) or self._ordinals.missing > 0
        version = self._state.lane_version + (not self._is_in_force(settings))
        under: Under = (version, ordinal if alone else None)
        if shown is not None:  # Its picture follows from them, too.
            under = (*under, shown)
        return self._filter.is_unchanged(seen, waiting.frame.frame_index, settings.seed, under)

    def _put_in_force(self, settings: Settings, ordinal: int) -> None:
        # With the first frame under them: controls alone cost the engine nothing, and a blend counts
        # from the ordinal that this frame has.
        if not self._is_in_force(settings):
            state = self._state
            in_force = settings_under(state.in_force, settings, ordinal)
            self._state = replace(state, lane_version=state.lane_version + 1, in_force=in_force)
        self._asked = settings

    def _is_in_force(self, settings: Settings) -> bool:
        # By value: a client that resumes goes back to former settings and forth again, which changes nothing.
        return settings == self._asked or settings.pictured == self._asked.pictured

    def _pace(self) -> None:
        self._pacer.warm_up(0 if self._instant else self._ordinals.missing, self._warm_up.frames)
