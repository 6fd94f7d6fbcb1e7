"""The history of one stream, checked as it happens: what was sent, what was answered, what is wrong.

Pure: every time is an argument, in seconds on one monotonic clock. It keeps one byte per frame and the
frames that are not answered yet; durations go into the histograms that it is given. The rules are those
of `Translate`: every frame received is answered exactly once and in order; credit never falls.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import Enum

from loadtest.histograms import Histograms

__all__ = ["Answer", "StreamLedger", "StreamResult", "Unsent", "Violation"]


class Violation(Enum):
    """A rule that was broken: by the server, except for the last one."""

    OUT_OF_ORDER = "out_of_order"
    """An answer to a frame that was sent before one that is answered already."""
    DUPLICATE = "duplicate"
    """A second answer to a frame."""
    UNKNOWN_FRAME = "unknown_frame"
    """An answer to a frame that was never sent."""
    MISSING = "missing"
    """A frame without an answer although the stream ended with OK, or never ended."""
    CREDIT_FELL = "credit_fell"
    """`frame_credit` became smaller."""
    WRONG_IMAGE = "wrong_image"
    """An answer whose image cannot be the frame's."""
    WRONG_TIME = "wrong_time"
    """An answer whose presentation time is not the frame's."""
    NO_END = "no_end"
    """The server did not end the stream in time after the half-close."""
    NOT_OPENED = "not_opened"
    """Something came before `opened`, or `opened` came twice, or not in time."""
    CREDIT_OVERRUN = "credit_overrun"
    """The generator sent more than it had credit for: its own fault."""


class Unsent(Enum):
    """Why a frame that was due was not sent."""

    NO_CREDIT = "no_credit"
    EXPIRED = "expired"
    STREAM_ENDED = "stream_ended"


class _State(Enum):
    UNSENT, SENT, ANSWERED = range(3)


@dataclass(frozen=True, slots=True)
class Answer:
    """A `frame` or `dropped` from the server."""

    frame_index: int
    drop_reason: str = ""
    """Empty: a picture."""
    image_ok: bool = True
    time_ok: bool = True
    timings_s: Mapping[str, float] = field(default_factory=dict)
    """The server's own: `total`, `admission`, `codec`, `<span>/queue`, `<span>/compute`."""


@dataclass(slots=True)
class StreamResult:
    """What became of one stream. Warm-up frames are in `violations` and in no other figure."""

    stream: int
    due: int = 0
    sent: int = 0
    translated: int = 0
    dropped: Counter[str] = field(default_factory=Counter)
    unsent: Counter[str] = field(default_factory=Counter)
    cut: int = 0
    """Frames sent, and not answered because the stream ended with an error."""
    violations: Counter[str] = field(default_factory=Counter)
    examples: list[str] = field(default_factory=list)
    """The first violations, in words."""
    end: str = ""
    """gRPC status name, with the ErrorInfo reason after a slash."""
    seconds: float = 0.0
    """What FPS is counted over: the schedule, or the time to the last answer if that is longer."""

    @property
    def fps(self) -> float:
        """Pictures per second."""
        return self.translated / self.seconds if self.seconds > 0 else 0.0


MAX_EXAMPLES = 5


class StreamLedger:
    """Checks and measures one stream."""

    def __init__(
        self,
        stream: int,
        frames: int,
        histograms: Histograms,
        *,
        warmup_frames: int = 0,
        scheduled_s: float = 0.0,
    ) -> None:
        """`scheduled_s`: the measured frames' share of the schedule; 0 without one (closed loop)."""
        self.result = StreamResult(stream)
        self.credit = 0
        """Frames that may have been sent in all."""
        self.sent_total = 0
        self.answered_total = 0
        self._histograms = histograms
        self._warmup = warmup_frames
        self._scheduled_s = scheduled_s
        self._states = bytearray(frames)
        self._due_s: dict[int, float] = {}
        """Frames sent and not answered, by index: when they were due."""
        self._last_answered = -1
        self._opened = False
        self._started_s: float | None = None
        self._last_answer_s: float | None = None

    @property
    def unanswered(self) -> int:
        """Frames sent and not answered."""
        return len(self._due_s)

    @property
    def has_credit(self) -> bool:
        """Whether one more frame may be sent."""
        return self.sent_total < self.credit

    def opened(self, waited_s: float) -> None:
        """`opened` came, `waited_s` after the request."""
        if self._opened:
            self._violate(Violation.NOT_OPENED, "a second `opened`")
        self._opened = True
        self._histograms.record("open", waited_s)

    def granted(self, credit: int) -> None:
        """A message carried this `frame_credit`."""
        if not self._opened:
            self._violate(Violation.NOT_OPENED, "a message before `opened`")
        if credit < self.credit:
            self._violate(Violation.CREDIT_FELL, f"credit {credit} after {self.credit}")
        self.credit = max(self.credit, credit)

    def sent(self, index: int, due_s: float, now: float, *, held: bool) -> None:
        """A frame is being sent. `held`: it, or one before it, had to wait for credit."""
        if not self.has_credit:
            self._violate(Violation.CREDIT_OVERRUN, f"frame {index} with credit {self.credit}")
        self.sent_total += 1
        self._states[index] = _State.SENT.value
        self._due_s[index] = due_s
        if index < self._warmup:
            return
        self._start(due_s)
        self.result.due += 1
        self.result.sent += 1
        self._histograms.record("held" if held else "client_lateness", now - due_s)

    def unsent(self, index: int, due_s: float, why: Unsent) -> None:
        """A frame was due and is not sent."""
        if index >= self._warmup:
            self._start(due_s)
            self.result.due += 1
            self.result.unsent[why.value] += 1

    def answered(self, answer: Answer, now: float) -> None:
        """A picture or a drop came."""
        index = answer.frame_index
        state = self._states[index] if index < len(self._states) else _State.UNSENT.value
        if state == _State.UNSENT.value:
            return self._violate(Violation.UNKNOWN_FRAME, f"frame {index} was not sent")
        if state == _State.ANSWERED.value:
            return self._violate(Violation.DUPLICATE, f"frame {index} again")
        self._states[index] = _State.ANSWERED.value
        self.answered_total += 1
        self._check(answer)
        self._measure(answer, self._due_s.pop(index), now)
        return None

    def ended(self, status: str, *, timed_out: bool = False) -> StreamResult:
        """The stream is over; what is unanswered is missing, or cut if an error ended the stream."""
        self.result.end = status
        if timed_out:
            self._violate(Violation.NO_END if self._opened else Violation.NOT_OPENED, "no end in time")
        elif status == "OK" and not self._opened:
            self._violate(Violation.NOT_OPENED, "the stream ended before `opened`")
        if status == "OK" or timed_out:
            for index in self._due_s:
                self._violate(Violation.MISSING, f"frame {index} has no answer")
        else:
            self.result.cut = sum(index >= self._warmup for index in self._due_s)
        self.result.seconds = max(self._scheduled_s, self._measured_s())
        return self.result

    def _check(self, answer: Answer) -> None:
        index = answer.frame_index
        if index < self._last_answered:
            self._violate(Violation.OUT_OF_ORDER, f"frame {index} after {self._last_answered}")
        self._last_answered = max(self._last_answered, index)
        if not answer.image_ok:
            self._violate(Violation.WRONG_IMAGE, f"frame {index}")
        if not answer.time_ok:
            self._violate(Violation.WRONG_TIME, f"frame {index}")

    def _measure(self, answer: Answer, due_s: float, now: float) -> None:
        if answer.frame_index < self._warmup:
            if not self._scheduled_s:
                self._started_s = now  # Closed loop: measuring starts when the last warm-up frame is back.
            return
        self._last_answer_s = now
        if answer.drop_reason:
            self.result.dropped[answer.drop_reason] += 1
            self._histograms.record("drop_latency", now - due_s)
            return
        self.result.translated += 1
        self._histograms.record("latency", now - due_s)
        for name, seconds in answer.timings_s.items():
            self._histograms.record(f"server/{name}", seconds)

    def _start(self, due_s: float) -> None:
        if self._started_s is None:
            self._started_s = due_s

    def _measured_s(self) -> float:
        if self._started_s is None or self._last_answer_s is None:
            return 0.0
        return max(0.0, self._last_answer_s - self._started_s)

    def _violate(self, violation: Violation, example: str) -> None:
        self.result.violations[violation.value] += 1
        if len(self.result.examples) < MAX_EXAMPLES:
            self.result.examples.append(f"{violation.value}: {example}")
