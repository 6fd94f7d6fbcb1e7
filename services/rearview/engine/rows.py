"""Frames in flight and the rows that they make ready.

A row is one (session, frame, operator). One over more frames is a *window*, those that warm a temporal cache
up together: it is as many samples of its forward as it has frames, and commits all of them or none. Which
rows are ready is said in `ready.py`.
"""

from __future__ import annotations

from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass, field, replace

from torch import Tensor

from rearview.contract.chain import Operator, OperatorKind
from rearview.contract.failure import Failure
from rearview.contract.frame import Forward, Frame, Timing
from rearview.contract.session import SessionSpec
from rearview.contract.settings import Settings
from rearview.contract.size import Size
from rearview.contract.warmup import Changes
from rearview.engine.course import Course, LaterRow

__all__ = [
    "MAX_FAILURES",
    "Batch",
    "FrameInFlight",
    "Row",
    "Running",
    "StepResult",
    "row_controls",
    "row_draws",
    "row_width",
    "window_group",
]

MAX_FAILURES = 2
"""A row that fails alone after having failed before makes its frame dropped."""


@dataclass(slots=True)
class FrameInFlight:
    """A frame in flight in this span. Owned and changed by the engine alone."""

    spec: SessionSpec
    settings: Settings
    came: Frame[Tensor]
    """As it entered the span."""
    planes: Mapping[str, Tensor] | None
    """What it carries now. None: it was lost."""
    course: Course
    """The operators of the span that this frame has (a frame with fewer steps has fewer)."""
    position: int = 0
    """Index in `course` of the next one."""
    ready_s: float = 0.0
    """When its next row became ready (or the frame arrived)."""
    queue_s: float = 0.0
    compute_s: float = 0.0
    device_s: float = 0.0
    """Its share of that."""
    forwards: tuple[Forward, ...] = ()
    """If it is traced."""
    failures: int = 0
    """Times that its next row has failed; from the first on it runs alone."""
    changes: Changes = field(default_factory=Changes)
    """Of a session with a temporal cache."""
    is_unseen: bool = False
    """Whether all that comes of it is what it leaves in memory here: nobody takes its picture."""

    @property
    def ordinal(self) -> int:
        return self.came.ordinal

    @property
    def size(self) -> Size:
        """Pixels of its picture."""
        return self.spec.size_under(self.settings)

    @property
    def deadline_s(self) -> float:
        """On this process's monotonic clock."""
        return self.came.deadline_s

    @property
    def carries(self) -> Mapping[str, Tensor] | None:
        """What it takes along where it leaves. None: it was lost."""
        return {} if self.is_unseen and self.planes is not None else self.planes

    @property
    def done(self) -> bool:
        return self.planes is None or self.position == len(self.course.operators)

    @property
    def operators(self) -> tuple[Operator, ...]:
        return self.course.operators

    @property
    def operator(self) -> Operator:
        return self.course.operators[self.position]

    @property
    def remaining(self) -> tuple[Operator, ...]:
        """The operators of the span that are still before this frame."""
        return self.operators[self.position :]

    @property
    def leaves_next(self) -> bool:
        """Whether the next operator is its last one here, and what comes of it is carried on."""
        return self.position + 1 == len(self.operators) and not self.is_unseen

    def passes(self) -> None:
        """None of what is before it has to run."""
        self.position = len(self.operators)

    def ran(self, started_s: float, finished_s: float, share: float, rows: int) -> None:
        """A forward with its row has succeeded, of whose samples `share` were its own, in a batch of `rows`.
        Before the frame goes on to its next operator.
        """
        self.failures = 0
        if self.came.trace_id:
            start_s = started_s - self._arrived_s
            forward = Forward(self.operator.name, start_s, finished_s - started_s, rows)
            self.forwards = (*self.forwards, forward)
        self.queue_s += started_s - self.ready_s
        self.compute_s += finished_s - started_s
        self.device_s += share * (finished_s - started_s)
        self.ready_s = finished_s

    def timing(self, span: str) -> Timing:
        """Its time in the span, where it leaves."""
        arrived_s = self._arrived_s if self.came.trace_id else 0.0
        return Timing(span, self.queue_s, self.compute_s, self.device_s, arrived_s, self.forwards)

    @property
    def _arrived_s(self) -> float:
        return self.ready_s - self.queue_s - self.compute_s


def row_width(operator: Operator, settings: Settings) -> int:
    """Samples that a frame takes in its network's batch."""
    return settings.rows_at(operator.step) if operator.kind is OperatorKind.DENOISE else 1


def row_controls(operator: Operator, settings: Settings) -> int:
    """Samples that a frame takes in the batches of all ControlNets."""
    return (
        row_width(operator, settings) * len(settings.acting_controls)
        if operator.kind is OperatorKind.DENOISE
        else 0
    )


def row_draws(operator: Operator, settings: Settings) -> tuple[str, ...]:
    """The controls for which something may be drawn where a frame is encoded."""
    if operator.kind is not OperatorKind.ENCODE:
        return ()
    return tuple(one.name for one in settings.acting_controls)


def window_group(group: Hashable) -> Hashable:
    """The group of window rows over frames whose rows alone would be in `group`: its own cost entry."""
    return "window", group


@dataclass(slots=True, eq=False)
class Row:
    """One (session, frames, operator), ready to run: one frame, or those of a window.

    A value, which nobody changes once it waits: it is not `frozen` for the reason that `Frame` is not. No two
    rows are equal.
    """

    frames: tuple[FrameInFlight, ...] = field(repr=False)
    """What it runs, in order, at least one: a sample of the forward each. In a window they see each other."""
    operator: Operator
    group: Hashable
    """Rows may share a forward iff their groups are equal (weights, resolution, dtype)."""
    due_s: float
    """When it must be done for its last frame to meet the deadline, going on alone."""
    writes: int = 0
    """Writes of its commit that not every row of its group makes: what it costs (`Memories.num_writes`)."""
    later: tuple[LaterRow, ...] = ()
    """Its frames' rows after this one, in this span."""
    warms_up: bool = False
    """Whether it is a window: what its commit puts into a temporal cache replaces all that was there."""
    shadow: bool = False
    """Whether it reads a window once more, only for that."""
    frame: FrameInFlight = field(init=False, repr=False)
    """That of its deadline and failures: the last one."""
    width: int = field(init=False)
    """Samples that it takes in its network's batch."""
    controls: int = field(init=False)
    """Samples that it takes in those of all ControlNets."""
    draws: tuple[str, ...] = field(init=False)
    """Names of the controls for which it may draw something."""

    def __post_init__(self) -> None:
        self.frame = self.frames[-1]
        self.controls = sum(row_controls(self.operator, frame.settings) for frame in self.frames)
        self.draws = row_draws(self.operator, self.frame.settings)
        if len(self.frames) == 1:
            self.width = row_width(self.operator, self.frame.settings)
        else:
            self.width = sum(row_width(self.operator, frame.settings) for frame in self.frames)

    @property
    def window(self) -> tuple[FrameInFlight, ...]:
        """Its frames if it warms a temporal cache up, else none."""
        return self.frames if self.warms_up else ()

    def samples(self) -> tuple[Row, ...]:
        """A row of its own for each frame; `writes` are still those of the whole."""
        if not self.warms_up:
            return (self,)
        return tuple(replace(self, frames=(frame,), warms_up=False) for frame in self.frames)

    @property
    def session_id(self) -> str:
        return self.frame.spec.session_id

    @property
    def ordinal(self) -> int:
        return self.frame.ordinal

    @property
    def settings(self) -> Settings:
        return self.frame.settings

    @property
    def size(self) -> Size:
        """Pixels of its frames' pictures."""
        return self.frame.size

    @property
    def planes(self) -> Mapping[str, Tensor]:
        planes = self.frame.planes
        assert planes is not None, f"row of a lost frame {self.ordinal}"
        return planes


@dataclass(frozen=True, slots=True)
class Running:
    """A forward under way, for whoever watches from another thread."""

    operator: str
    rows: int
    expected_s: float | None
    """What it costs. None: nothing like it has been run here before."""


@dataclass(frozen=True, slots=True)
class Batch:
    """One forward, for metrics."""

    kind: OperatorKind
    rows: int
    seconds: float
    failure: Failure | None = None
    """Why nothing came of it."""
    is_accelerated: bool = False
    """Whether its network was replayed, or ran compiled."""
    is_fallback: bool = False
    """Whether it was to be, and ran as it is."""

    @property
    def failed(self) -> bool:
        return self.failure is not None


@dataclass(frozen=True, slots=True)
class StepResult:
    """What one step did."""

    emissions: Sequence[Frame[Tensor]]
    batch: Batch | None
    """None: no row was ready."""
    queue_age_s: float = 0.0
    """How long the oldest row has waited that was ready and not chosen; 0 with none."""
    forgotten: int = 0
    """Outputs that were let go of since the last one although nobody had acknowledged them."""
