"""A session at the ingress: every frame received is answered exactly once, in order.

The session outlives the stream that feeds it. It paces frames into its lane, gives ordinals, turns
pictures and drops into answers, keeps answers until the client has them, and closes its books when it
ends. It knows neither gRPC nor protobuf: `stream.py` reads and writes, this decides.
"""

from __future__ import annotations

import asyncio
import contextlib
import hmac
import secrets
import time
from collections import deque
from collections.abc import Callable, Coroutine, Sequence
from concurrent.futures import Executor
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from rearview.config import TenantConfig
from rearview.contract.blending import is_blending, settings_under
from rearview.contract.frame import NO_PLACE, PICTURE, Frame, Timing
from rearview.contract.session import SessionSpec
from rearview.contract.settings import DEFAULT_JPEG_QUALITY, Settings
from rearview.contract.stream import DropPolicy, ImageFormat
from rearview.contract.warmup import LaneWarmUp
from rearview.directory.protocol import Lease
from rearview.errors import DropReason, InvalidRequest, Reason, Refused, StreamEnded
from rearview.ingress.codec import BadImage, decode_image, encode_image
from rearview.ingress.lanes import Lane, Lanes
from rearview.ingress.options import SessionOptions
from rearview.ingress.pacing import Pacer
from rearview.ingress.scene import SceneDetector
from rearview.ingress.similarity import SimilarityFilter, Thumbnail, thumbnail
from rearview.telemetry.metrics import Metrics
from rearview.transport.links import LinkClosed

__all__ = ["Answer", "FrameIn", "IngressSession"]

LIVE_TARGET_S = 0.1
"""Deadline of a live frame without a budget of its own: it orders sessions, nothing is dropped for it."""
RETAINED_ANSWERS = 64
"""Answers kept for a client that does not say what it has received."""


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


@dataclass(slots=True)
class Answer:
    """The outcome of one frame; in order of receipt. `outcome` is None until it is known."""

    place: int
    """Its number among the frames received, from 0."""
    frame_index: int
    presentation_offset: tuple[int, int]
    received_s: float
    outcome: bytes | DropReason | None = None
    """The encoded picture, or why there is none."""
    started_s: float = 0.0
    """When the frame entered its lane; 0 if it never did."""
    answered_s: float = 0.0
    codec_s: float = 0.0
    jpeg_quality: int = DEFAULT_JPEG_QUALITY
    """Of the encoded picture."""
    warms_up: bool = False
    """Whether it waits for other frames, so that its age is not the service's."""
    timings: Sequence[Timing] = field(default_factory=tuple)


Waiting = tuple[FrameIn, Answer, int, Settings]
"""A frame that waits for its turn, with the version of its settings and these themselves."""


class IngressSession:
    """One session. For one event loop; `executor` decodes and encodes images."""

    def __init__(
        self,
        spec: SessionSpec,
        model: str,
        options: SessionOptions,
        tenant: TenantConfig,
        lease: Lease,
        lane: Lane,
        lanes: Lanes,
        pacer: Pacer[Waiting],
        metrics: Metrics,
        executor: Executor,
        on_fault: Callable[[BaseException], None],
        warm_up_frames: int = 0,
    ) -> None:
        """`on_fault` is told when one of the session's own tasks fails; it must end the session.

        `warm_up_frames`: how many frames warm up together in a session with a temporal cache.
        """
        self.spec, self.options, self.tenant = spec, options, tenant
        self.lease, self.lane = lease, lane
        self.model = model
        self.settings = spec.settings
        self.resume_token = secrets.token_urlsafe(24)
        self.translated = 0
        self.dropped = 0
        self._lanes, self._pacer = lanes, pacer
        self._metrics, self._executor, self._on_fault = metrics, executor, on_fault
        self._filter = None if options.similarity is None else SimilarityFilter(options.similarity)
        cache = spec.cache
        self._scenes = SceneDetector() if cache is not None and cache.scene_detection else None
        self._instant = cache is not None and cache.instant_start
        self._warm_up = LaneWarmUp.of(warm_up_frames, cache, spec.settings, instant=self._instant)
        self._version = 0
        self._announced = (0, 0)
        """Version and scene of the last settings that the lane knows."""
        self._lane_version = 0
        """The number by which it knows them."""
        self._in_force = spec.settings
        """Those settings, with the blend that is under way."""
        self._last_sent: Frame[NDArray[Any]] | None = None
        """For fillers; None where none can be needed."""
        self._ends = False
        """Whether the client has said that no frame will follow."""
        self._next_ordinal = 0
        self._last_index = -1
        self._open: deque[Answer] = deque()
        """Frames received and not yet released, in order."""
        self._in_lane: dict[int, Answer] = {}
        self._released: deque[Answer] = deque()
        """Answers in order, from number `_first_released` on; kept until received."""
        self._first_released = 0
        self._sent = 0
        self._changed = asyncio.Event()
        self._startable = asyncio.Event()
        self._tasks: set[asyncio.Task[None]] = set()
        self._pace_warm_up()
        self._spawn(self._start_frames())

    # What a stream does.

    def receive(self, frame: FrameIn, refusal: DropReason | None) -> None:
        """Take a frame; `refusal` is why it cannot be used. Raises Refused(CREDIT_EXCEEDED)."""
        answer = Answer(self.received, frame.frame_index, frame.presentation_offset, frame.received_s)
        answer.jpeg_quality = self.settings.jpeg_quality
        self._ends = False
        if refusal is None and frame.frame_index <= self._last_index:
            refusal = DropReason.INDEX_NOT_INCREASING
        if self.received >= self.frame_credit:
            raise Refused(
                Reason.CREDIT_EXCEEDED,
                "more frames were sent than `frame_credit` allows",
                metadata={"frame_credit": str(self.frame_credit)},
            )
        if refusal is not None:
            self._pacer.rejected()
            self._open.append(answer)
            self._settle(answer, refusal)
            self._startable.set()
            return
        dropped = self._pacer.offer((frame, answer, self._version, self.settings), frame.received_s)
        self._last_index = frame.frame_index
        self._open.append(answer)
        self._drop(dropped)
        self._startable.set()

    def apply(self, settings: Settings) -> None:
        """Frames received from now on are translated under `settings`."""
        self._version += settings.pictured != self.settings.pictured
        self.settings = settings

    def finish(self) -> None:
        """No frame will follow: a warm-up that is under way gets fillers."""
        self._ends = True
        self._startable.set()

    def acknowledge(self, received_answers: int) -> None:
        """The client has so many answers: they need not be kept.

        Raises InvalidRequest(SETTING_OUT_OF_RANGE) if there are not so many.
        """
        if received_answers > self.released:
            raise InvalidRequest(
                Reason.SETTING_OUT_OF_RANGE,
                "more answers were received than were sent",
                metadata={"field": "received_answers"},
            )
        while self._first_released < min(received_answers, self._sent):
            self._released.popleft()
            self._first_released += 1

    def sent(self, number: int) -> None:
        """Answers before `number` were handed to the connection."""
        self._sent = max(self._sent, number)
        while self._sent - self._first_released > RETAINED_ANSWERS:
            self._released.popleft()
            self._first_released += 1

    def answer(self, number: int) -> Answer | None:
        """The answer of that number (0 = first received frame); None if it is not known yet.

        Raises StreamEnded if it is no longer kept.
        """
        if number < self._first_released:
            raise StreamEnded(
                Reason.SESSION_UNKNOWN, "answers before the resumed position are no longer kept"
            )
        at = number - self._first_released
        return self._released[at] if at < len(self._released) else None

    async def wait_for_change(self) -> None:
        """Return when an answer was released, or `wake` was called, since the last call."""
        await self._changed.wait()
        self._changed.clear()

    def wake(self) -> None:
        """Make `wait_for_change` return."""
        self._changed.set()

    @property
    def received(self) -> int:
        return self._pacer.received()

    @property
    def released(self) -> int:
        """Answers that are known, in order."""
        return self._first_released + len(self._released)

    @property
    def owes(self) -> bool:
        """Whether a received frame has no answer yet."""
        return bool(self._open)

    @property
    def warm_up_frames(self) -> int:
        """Frames that are received before the first of them is answered."""
        return 1 if self._instant else max(1, self._warm_up.frames)

    @property
    def warm_up_missing(self) -> int:
        """Frames that a warm-up waits for and that have not been sent into the lane."""
        return self._warm_up.missing(self._next_ordinal)

    @property
    def warms_up(self) -> bool:
        """Whether a warm-up waits for such frames."""
        return self.warm_up_missing > 0

    @property
    def starves(self) -> bool:
        """Whether nothing happens until the client sends more: all that is owed waits for a warm-up."""
        return self.warms_up and self._is_idle and all(map(self._warm_up.holds, self._in_lane))

    @property
    def _is_idle(self) -> bool:
        """Whether no frame waits or is on its way into the lane."""
        return not self._pacer.waiting() and self._pacer.in_flight() == len(self._in_lane)

    @property
    def frame_credit(self) -> int:
        """Frames that the client may have sent in all. A reader that stands still earns no more."""
        return min(self._pacer.credit(), self._sent + RETAINED_ANSWERS)

    def holds(self, token: str) -> bool:
        """Whether `token` is the session's resume token."""
        return hmac.compare_digest(token.encode(), self.resume_token.encode())

    def end(self) -> None:
        """Stop the session's own work. What is answered can still be sent."""
        for task in self._tasks:
            task.cancel()

    # What the lane does.

    def on_frame(self, frame: Frame[NDArray[Any]]) -> None:
        """A picture has come back, or word that it will not."""
        if frame.epoch != self.lane.epoch:
            return  # Of another owner.
        self._warm_up.came_back(frame.ordinal, lost=frame.is_lost)
        if self._warm_up.is_over:
            self._last_sent = None
        if frame.is_lost:
            self._pace_warm_up()
            self._startable.set()
        if frame.ordinal not in self._in_lane:
            return  # A filler's, or sent a second time.
        answer = self._in_lane.pop(frame.ordinal)
        answer.timings = frame.timings
        self._pacer.finished()
        self._startable.set()
        if frame.planes is None:
            self._refuse(answer, DropReason.FAULT)
        elif not answer.warms_up and self._pacer.is_late(answer.received_s, time.monotonic()):
            self._refuse(answer, DropReason.LATE)
        else:
            self._spawn(self._finish(answer, frame.planes[PICTURE]))

    def _refuse(self, answer: Answer, reason: DropReason) -> None:
        if self._filter is not None:
            self._filter.forget()
        self._settle(answer, reason)

    async def _start_frames(self) -> None:
        while True:
            await self._startable.wait()
            taken, dropped = self._pacer.take(time.monotonic())
            self._drop(dropped)
            if taken is None:
                self._startable.clear()
                self._fill_up()
                continue
            await self._start(*taken)
            self._pace_warm_up()

    async def _start(self, frame: FrameIn, answer: Answer, version: int, settings: Settings) -> None:
        try:
            payload = await self._decode(frame, answer)
        except BadImage as error:
            self._pacer.finished()
            self._settle(answer, error.reason)
            return
        seen = await self._thumbnail(frame, payload)
        if self._scenes is not None and seen is not None:
            settings = replace(settings, scene=self._scenes.see(seen))
        if self._is_unchanged(seen, frame, version, settings):
            self._pacer.finished()
            self._settle(answer, DropReason.UNCHANGED)
            return
        answer.started_s = time.monotonic()
        if self._warm_up.is_reset_by(settings):
            self._complete_window()
        for _ in range(self._warm_up.enter(self._next_ordinal, settings)):
            self._send(payload, answer, version, settings, is_filler=True)
            self._metrics.filler_frames.inc()
        answer.warms_up = self._warm_up.holds(self._next_ordinal)
        self._in_lane[self._next_ordinal] = answer
        self._send(payload, answer, version, settings)

    def _send(
        self,
        payload: NDArray[np.uint8],
        answer: Answer,
        version: int,
        settings: Settings,
        *,
        is_filler: bool = False,
    ) -> None:
        """A frame into the lane, under the next ordinal."""
        self._announce(version, settings, self._next_ordinal)
        frame: Frame[NDArray[Any]] = Frame(
            self.spec.session_id,
            self._next_ordinal,
            {PICTURE: payload},
            settings_version=self._lane_version,
            deadline_s=answer.started_s + self._budget_s(answer),
            place=NO_PLACE if is_filler else answer.place,
            frame_index=answer.frame_index,
            epoch=self.lane.epoch,
        )
        self._send_into_lane(frame)

    def _send_into_lane(self, frame: Frame[NDArray[Any]]) -> None:
        self._next_ordinal = frame.ordinal + 1
        self._last_sent = None if self._warm_up.is_over else frame
        with contextlib.suppress(LinkClosed):  # The loss itself ends the session.
            sent = self._lanes.send_frame(self.lane, frame)
            self._metrics.link_bytes.labels("ingress", "sent").inc(sent)

    def _fill_up(self) -> None:
        """Complete a warm-up for which no frame will come: the client has ended, or may send no more, or
        waits for the answer of the only one.
        """
        exhausted = self.received >= self._sent + RETAINED_ANSWERS
        if not (self._ends or exhausted or self._instant):
            return
        if self.starves or (self._ends and self._is_idle):
            self._complete_window()
            self._pace_warm_up()

    def _complete_window(self) -> None:
        """Send fillers for what the window still waits for, if a frame in the lane waits with it."""
        if self._last_sent is None or not any(map(self._warm_up.holds, self._in_lane)):
            return
        for _ in range(self.warm_up_missing):
            self._send_into_lane(replace(self._last_sent, ordinal=self._next_ordinal, place=NO_PLACE))
            self._metrics.filler_frames.inc()

    def _pace_warm_up(self) -> None:
        missing = self.warm_up_missing
        self._pacer.warm_up(0 if self._instant else missing, self._warm_up.frames)
        if missing:
            self._changed.set()  # There may be more credit than any answer could say.

    def _announce(self, version: int, settings: Settings, ordinal: int) -> None:
        # With the first frame under them: controls alone cost the engine nothing, and a blend counts
        # from the ordinal that this frame has.
        if self._announced == (version, settings.scene):
            return
        self._announced = version, settings.scene
        self._lane_version += 1
        self._in_force = settings_under(self._in_force, settings, ordinal)
        with contextlib.suppress(LinkClosed):  # The loss itself ends the session.
            self._lanes.send_settings(self.lane, self._lane_version, self._in_force)

    async def _thumbnail(self, frame: FrameIn, pixels: NDArray[np.uint8]) -> Thumbnail | None:
        """None if nobody looks at it."""
        if frame.format is ImageFormat.OPAQUE or (self._filter is None and self._scenes is None):
            return None
        return await asyncio.get_running_loop().run_in_executor(self._executor, thumbnail, pixels)

    def _is_unchanged(self, seen: Thumbnail | None, frame: FrameIn, version: int, settings: Settings) -> bool:
        if self._filter is None or seen is None:
            return False
        # Every frame of a blend is under another mix; frames of a warm-up are waited for.
        alone = is_blending(self._in_force, self._next_ordinal) or self.warms_up
        under = (version, settings.scene, self._next_ordinal if alone else None)
        return self._filter.is_unchanged(seen, frame.frame_index, settings.seed, under)

    def _budget_s(self, answer: Answer) -> float:
        if self.options.policy is DropPolicy.LOSSLESS:
            return float("inf")
        budget_s = (
            self.options.frame_budget_s if self.options.policy is DropPolicy.DEADLINE else LIVE_TARGET_S
        )
        return answer.received_s + budget_s - answer.started_s

    async def _decode(self, frame: FrameIn, answer: Answer) -> NDArray[np.uint8]:
        if frame.format is ImageFormat.OPAQUE:
            return np.frombuffer(frame.image, np.uint8)
        started_s = time.monotonic()
        pixels = await asyncio.get_running_loop().run_in_executor(
            self._executor, decode_image, frame.image, frame.format, self.spec.width, self.spec.height
        )
        answer.codec_s += self._observe_codec("decode", started_s)
        return pixels

    async def _finish(self, answer: Answer, picture: NDArray[Any]) -> None:
        kind = self.options.answer_format
        if kind is ImageFormat.OPAQUE:
            self._settle(answer, picture.tobytes())
            return
        started_s = time.monotonic()
        image = await asyncio.get_running_loop().run_in_executor(
            self._executor, encode_image, picture, kind, answer.jpeg_quality
        )
        answer.codec_s += self._observe_codec("encode", started_s)
        self._settle(answer, image)

    def _observe_codec(self, operation: str, started_s: float) -> float:
        seconds = time.monotonic() - started_s
        self._metrics.image_codec_seconds.labels(operation).observe(seconds)
        return seconds

    def _drop(self, dropped: Sequence[tuple[Waiting, DropReason]]) -> None:
        for (_, answer, *_), reason in dropped:
            self._settle(answer, reason)

    def _settle(self, answer: Answer, outcome: bytes | DropReason) -> None:
        """Give a frame its one outcome, and release what is now answered in order."""
        assert answer.outcome is None, f"frame {answer.frame_index} has two outcomes"
        answer.outcome = outcome
        answer.answered_s = time.monotonic()
        self._count(answer)
        while self._open and self._open[0].outcome is not None:
            self._released.append(self._open.popleft())
        self._changed.set()

    def _count(self, answer: Answer) -> None:
        if isinstance(answer.outcome, DropReason):
            self.dropped += 1
            self._metrics.frame_dropped(answer.outcome)
        else:
            self.translated += 1
            self._metrics.frame_translated(self.model, answer.answered_s - answer.received_s)

    def _spawn(self, coroutine: Coroutine[Any, Any, None]) -> None:
        task = asyncio.create_task(coroutine)
        self._tasks.add(task)
        task.add_done_callback(self._task_done)

    def _task_done(self, task: asyncio.Task[None]) -> None:
        self._tasks.discard(task)
        if not task.cancelled() and (error := task.exception()) is not None:
            self._on_fault(error)
