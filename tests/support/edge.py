"""A session at the edge in virtual time: book, intake and feed as they are, and a lane that only notes."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray
from rearview.config import LimitsConfig, TenantConfig
from rearview.contract.events import Event
from rearview.contract.frame import NO_PLACE, PICTURE, Frame
from rearview.contract.memories import CacheSettings
from rearview.contract.session import SessionSpec
from rearview.contract.settings import Settings
from rearview.contract.similarity import SimilaritySettings
from rearview.contract.stream import DropPolicy, ImageFormat
from rearview.errors import DropReason
from rearview.ingress.book import Book
from rearview.ingress.feed import Feed
from rearview.ingress.inputs import Inputs
from rearview.ingress.intake import Dropped, FrameIn, Intake
from rearview.ingress.lane import Lane, Returning
from rearview.ingress.options import SessionOptions, Terms
from rearview.ingress.similarity import thumbnail
from rearview.ingress.state import EdgeState
from rearview.transport.codec import SPOKEN, FrameCodec
from rearview.transport.links import LinkClosed

SIDE = 64
SESSION = "0" * 32
TENANT = TenantConfig(name="alpha", token_sha256="0" * 64)


def lane(epoch: int = 1) -> Lane:
    """A lane without links."""
    returning = Returning(FrameCodec(SPOKEN.newest, ("fused",)))
    return Lane(SESSION, epoch, (f"fused#{epoch}",), (), returning, ())


def terms(
    policy: DropPolicy = DropPolicy.LOSSLESS,
    *,
    similarity: SimilaritySettings | None = None,
    cache: CacheSettings | None = None,
    warm_up_frames: int = 3,
    budget_s: float = 0.5,
) -> Terms:
    """What a session of the tests was opened with."""
    spec = SessionSpec(SESSION, SIDE, SIDE, 2, Settings("a"), TENANT.name, cache=cache)
    options = SessionOptions(policy, budget_s, ImageFormat.RGB, similarity)
    return Terms(spec, options, TENANT, warm_up_frames)


def picture(seed: int, noise: int = 0) -> NDArray[np.uint8]:
    """One of several scenes; with `noise` another picture of the same one."""
    scene = np.random.default_rng(seed).integers(0, 240, (SIDE // 8, SIDE // 8, 3))
    pixels = np.repeat(np.repeat(scene, 8, axis=0), 8, axis=1)
    shifted: NDArray[np.uint8] = (pixels + np.random.default_rng(noise).integers(0, 16, pixels.shape)).astype(
        np.uint8
    )
    return shifted


@dataclass
class NotingSender:
    """Takes what is sent into any lane."""

    frames: list[Frame[NDArray[Any]]] = field(default_factory=list)
    settings: list[tuple[int, int, Settings]] = field(default_factory=list)
    """Epoch, version and settings."""
    acknowledged: list[tuple[int, int]] = field(default_factory=list)
    """Epoch and ordinal."""
    notes: list[tuple[int, int, str]] = field(default_factory=list)
    """Epoch, the ordinal from which on it holds, and its text."""
    left: list[Frame[NDArray[Any]]] = field(default_factory=list)
    """Answers for the last span to keep."""
    dropped: list[tuple[int, int, int, int]] = field(default_factory=list)
    """Epoch, and of a frame that never comes its place, its number and why."""
    is_closed: bool = False

    def send_frame(self, to: Lane, frame: Frame[NDArray[Any]]) -> int:
        assert frame.epoch == to.epoch, f"a frame of epoch {frame.epoch} for {to.epoch}"
        self._check()
        self.frames.append(frame)
        return 10

    def send_settings(self, to: Lane, version: int, settings: Settings) -> None:
        self._check()
        self.settings.append((to.epoch, version, settings))

    def acknowledge(self, to: Lane, ordinal: int) -> None:
        self._check()
        self.acknowledged.append((to.epoch, ordinal))

    def leave_answer(self, to: Lane, frame: Frame[NDArray[Any]]) -> None:
        assert frame.epoch == to.epoch, f"an answer of epoch {frame.epoch} for {to.epoch}"
        self._check()
        self.left.append(frame)

    def send_note(self, to: Lane, begins: int, text: str) -> None:
        self._check()
        self.notes.append((to.epoch, begins, text))

    def tell_dropped(self, to: Lane, frames: Sequence[tuple[int, int, int]]) -> None:
        self._check()
        self.dropped += [(to.epoch, *frame) for frame in frames]

    def _check(self) -> None:
        if self.is_closed:
            raise LinkClosed("closed")


class EdgeCore:
    """What `IngressSession` does, without tasks, threads or a clock."""

    def __init__(self, agreed: Terms, limits: LimitsConfig | None = None) -> None:
        self._terms, self._limits = agreed, limits or LimitsConfig()
        self.sender = NotingSender()
        self.events: list[Event] = []
        self.intake = Intake(agreed, self._limits, EdgeState.at_open(agreed))
        self.feed = Feed(SESSION, lane(), self.sender, self.events.append, Inputs(0, 1 << 30))
        self.book = Book()
        self.now = 0.0
        self._pictures: dict[int, NDArray[np.uint8]] = {}

    def offer(self, index: int, pixels: NDArray[np.uint8], refusal: DropReason | None = None) -> None:
        """A frame comes and, if it may, goes on its way."""
        frame = FrameIn(index, (0, 0), ImageFormat.RGB, b"", self.now)
        receipt = self.book.receive(index, (0, 0), self.now)
        self._pictures[receipt.place] = pixels
        self._drop(self.intake.receive(frame, receipt, refusal))
        self.run()

    def run(self) -> None:
        """Start whatever can start."""
        while self.feed.is_attached:
            taken, dropped = self.intake.take(self.now)
            self._drop(dropped)
            if taken is None:
                fillers = self.intake.fill_up(is_exhausted=self.book.is_exhausted)
                self.feed.repeat(fillers, self.now)
                return
            pixels = self._pictures.pop(taken.receipt.place)
            seen = thumbnail(pixels) if self.intake.looks else None
            admitted = self.intake.admit(taken, seen, self.now)
            if admitted is None:
                self._settle(taken.receipt.place, DropReason.UNCHANGED)
                continue
            self.feed.send(admitted, {PICTURE: pixels}, 0.0, may_repeat=self.intake.may_repeat)

    def comes_back(self, frame: Frame[NDArray[Any]], *, lost: bool = False) -> None:
        """The lane answers."""
        back = replace(frame, planes=None) if lost else frame
        if not self.feed.is_current(back):
            return
        self.intake.came_back(back.ordinal, lost=lost)
        if not self.intake.may_repeat:
            self.feed.forget()
        sent = self.feed.take_back(back.ordinal)
        if sent is not None:
            reason = self.intake.judge(sent.admitted, self.now, lost=lost)
            self._settle(sent.place, b"picture" if reason is None else reason)
        self.run()

    def move(self) -> None:
        """Another ingress goes on from the session's durable part, with another lane: none is in flight."""
        assert not self.feed.in_lane, f"{len(self.feed.in_lane)} frames are in the lane"
        state = self._restored()
        self.book = Book(first=state.pacing.received, translated=state.translated, dropped=state.dropped)
        epoch = self.feed.lane.epoch + 1
        inputs = Inputs(state.next_ordinal, 1 << 30)
        self.feed = Feed(SESSION, lane(epoch), self.sender, self.events.append, inputs)

    def restore(self) -> None:
        """The intake is made anew from the durable part; what is in flight stays: the lane is the same."""
        self._restored()

    def _restored(self) -> EdgeState:
        text = self.intake.state(self.book.translated, self.book.dropped).to_json()
        state = EdgeState.from_json(text)
        self.intake = Intake(self._terms, self._limits, state, self.feed.in_lane)
        assert self.intake.state(self.book.translated, self.book.dropped).to_json() == text
        return state

    @property
    def credit(self) -> int:
        return min(self.intake.credit, self.book.credit)

    @property
    def fillers(self) -> list[int]:
        """Ordinals of fillers."""
        return [frame.ordinal for frame in self.sender.frames if frame.place == NO_PLACE]

    @property
    def outcomes(self) -> list[DropReason | bytes]:
        """In order, from the first that is kept."""
        places = range(self.book.first_kept, self.book.released)
        return [answer.outcome for place in places if (answer := self.book.answer(place)) is not None]

    def _drop(self, dropped: Dropped) -> None:
        for place, reason in dropped:
            self._settle(place, reason)

    def _settle(self, place: int, outcome: bytes | DropReason) -> None:
        self.book.settle(place, outcome, self.now)
