"""Measuring a model's cost table at start-up, which also warms it up.

What is measured (`Timings`) is plain numbers by kind of operator, which may outlive the process; the table
speaks of groups, which only a loaded model knows. Where a forward takes seconds it is timed once, and alone.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Collection, Hashable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from itertools import product

import torch

from rearview.contract.chain import Operator, OperatorKind, Span
from rearview.contract.controls import WeightedControl
from rearview.contract.failure import Failure
from rearview.contract.frame import DEPTH, LATENT, PICTURE, Frame, control_plane
from rearview.contract.session import SessionSpec
from rearview.engine.course import Course
from rearview.engine.device_memory import Counter
from rearview.engine.devices import release_unused, synchronize
from rearview.engine.failures import failure_of
from rearview.engine.memory.compose import Memories
from rearview.engine.networks.model import Forward, Model, row_group
from rearview.engine.planes import Planes
from rearview.engine.rows import FrameInFlight, Row, window_group
from rearview.engine.scheduler import CostTable
from rearview.engine.weights.checkpoint import latent_shape
from rearview.engine.weights.formats import Additions

__all__ = [
    "OnCalibration",
    "Timing",
    "Timings",
    "cost_table",
    "example_payloads",
    "measure",
    "measure_costs",
    "row_seconds",
    "warm_up",
]

OnCalibration = Callable[[OperatorKind, float], None]
"""Is told what is measured, and how many seconds are left of it at most."""

REPEATS = 2
"""The fastest of at least so many runs counts: the first ones also allocate."""
MOST_REPEATS = 5
CHEAP_S = 0.2
"""Up to `MOST_REPEATS` runs are timed as long as they take less than this together: beside another process
that wants the cores, one of a millisecond can take fifty.
"""
SLOW_S = 1.5
"""A forward that takes longer needs no second look: what allocates takes little beside it, and on a device
that slow a batch gains nothing.
"""
NEW_TWICE = 2
"""Runs after which a forward is no longer new: what is seen once is captured when it comes again."""
MAX_INTERVAL = 4096
"""Ordinals among which a row that writes, and one that does not, are looked for."""


@dataclass(frozen=True, slots=True)
class Timing:
    """Seconds and bytes of one kind of operator, by number of samples in a forward."""

    row_s: Mapping[int, float]
    window_s: Mapping[int, float]
    """The same of windows of frames that warm up together; empty where none do."""
    write_s: float
    """Seconds more of a write; 0 where none is ever due."""
    row_bytes: Mapping[int, int] = field(default_factory=dict)
    """Memory that such a forward had at most, beside what was there before; empty where nobody knows."""
    window_bytes: Mapping[int, int] = field(default_factory=dict)
    """The same of windows."""
    control_s: float = 0.0
    """Seconds more of a ControlNet over one sample; 0 where there is none."""


Timings = Mapping[OperatorKind, Timing]
"""Of the operators of a span, in sessions of one kind."""


def measure(
    model: Model,
    memory: Memories,
    span: Span,
    spec: SessionSpec,
    payloads: Sequence[Planes],
    batch_sizes: Sequence[int] = (1, 2),
    on_progress: OnCalibration | None = None,
    counter: Counter | None = None,
    control: str = "",
) -> Timings:
    """Time forwards of each kind of operator in the span, and a write; of a memory that warms up also those
    of windows. What every row writes is part of its forward's seconds.

    `payloads`: one example per operator of the span; `counter`: of the device's memory; `control`: name of a
    ControlNet, which is timed too (all of a UNet are built alike). Nothing is left in memory.
    """
    benches = _benches(model, memory, span, spec, payloads, on_progress, counter)
    memory.allocate(spec)
    found = {kind: bench.measure(batch_sizes, control) for kind, bench in benches.items()}
    memory.free(spec.session_id)
    return found


def row_seconds(
    model: Model, memory: Memories, span: Span, spec: SessionSpec, payloads: Sequence[Planes]
) -> Mapping[OperatorKind, float]:
    """Seconds of a forward of one row, by kind: enough to warm up, and to doubt what was measured before."""
    benches = _benches(model, memory, span, spec, payloads)
    memory.allocate(spec)
    found = {kind: bench.row_seconds() for kind, bench in benches.items()}
    memory.free(spec.session_id)
    return found


def warm_up(
    model: Model,
    memory: Memories,
    span: Span,
    spec: SessionSpec,
    payloads: Sequence[Planes],
    sizes: Sequence[int],
) -> None:
    """Run forwards of each of these numbers of samples, with a write and without, until none of them is new
    to whatever compiles or captures them. Nothing is left in memory.
    """
    benches = _benches(model, memory, span, spec, payloads)
    memory.allocate(spec)
    for bench in benches.values():
        bench.warm_up(sizes)
    memory.free(spec.session_id)


def cost_table(
    timings: Timings,
    model: Model,
    memory: Memories,
    span: Span,
    spec: SessionSpec,
    adapter_sets: Sequence[str] = (),
    *,
    ran_here: bool = True,
) -> CostTable:
    """What was measured, by group. `adapter_sets`: merged ones, whose rows cost no more, since only the
    weights differ. `ran_here`: whether it was measured in this process.
    """
    table: dict[Hashable, Mapping[int, float]] = {}
    ran: dict[Hashable, Collection[int]] = {}
    for operator in span.operators:
        timing = timings[operator.kind]
        for adapters in ("", *adapter_sets):
            settings = replace(spec.settings, adapters=adapters or spec.settings.adapters)
            group = row_group(model, memory, spec, settings, operator)
            found = {group: timing.row_s} | (
                {window_group(group): timing.window_s} if timing.window_s else {}
            )
            for key, seconds in found.items():
                table.setdefault(key, seconds)
                if ran_here and not adapters:
                    ran.setdefault(key, tuple(seconds))
    write_s = max((timing.write_s for timing in timings.values()), default=0.0)
    control_s = max((timing.control_s for timing in timings.values()), default=0.0)
    return CostTable(table, write_s, control_s, ran)


def measure_costs(
    model: Model,
    memory: Memories,
    span: Span,
    spec: SessionSpec,
    payloads: Sequence[Planes],
    batch_sizes: Sequence[int] = (1, 2),
    adapter_sets: Sequence[str] = (),
) -> CostTable:
    """`measure`, as a table."""
    timings = measure(model, memory, span, spec, payloads, batch_sizes)
    return cost_table(timings, model, memory, span, spec, adapter_sets)


def example_payloads(
    checkpoint: str, span: Span, spec: SessionSpec, additions: Additions | None = None
) -> list[Planes]:
    """Grey frames and zero latents, one per operator of the span, for `measure_costs`."""
    image = torch.full((spec.height, spec.width, 3), 128, dtype=torch.uint8)
    shape = latent_shape(checkpoint, spec.height, spec.width, additions)
    latent = torch.zeros(shape, dtype=torch.float32)
    has_depth = additions is not None and additions.depth and spec.cache is not None
    by_kind = {
        OperatorKind.ENCODE: {PICTURE: image},
        OperatorKind.DENOISE: {LATENT: latent, DEPTH: latent} if has_depth else {LATENT: latent},
        OperatorKind.DECODE: {LATENT: latent},
    }
    return [by_kind[operator.kind] for operator in span.operators]


def _benches(
    model: Model,
    memory: Memories,
    span: Span,
    spec: SessionSpec,
    payloads: Sequence[Planes],
    on_progress: OnCalibration | None = None,
    counter: Counter | None = None,
) -> Mapping[OperatorKind, _Bench]:
    """One for each kind of operator: what differs between steps costs nothing."""
    found: dict[OperatorKind, _Bench] = {}
    for operator, payload in zip(span.operators, payloads, strict=True):
        if operator.kind not in found:
            found[operator.kind] = _Bench(model, memory, spec, operator, payload, on_progress, counter)
    return found


class _Bench:
    """Rows of one session and one operator. Frames of one session are not in one forward: so forwards are of
    one row many times, and what a row commits is timed apart.
    """

    def __init__(
        self,
        model: Model,
        memory: Memories,
        spec: SessionSpec,
        operator: Operator,
        payload: Planes,
        on_progress: OnCalibration | None,
        counter: Counter | None,
    ) -> None:
        self._counter = counter
        self._before = 0 if counter is None else counter.now()
        self._bytes: dict[bool, dict[int, int]] = {False: {}, True: {}}
        """Of rows and of windows, by samples."""
        self._model, self._memory, self._spec = model, memory, spec
        self._operator, self._payload = operator, payload
        self._on_progress = on_progress
        self._group = row_group(model, memory, spec, spec.settings, operator)
        self._left = self._least = 0
        """Samples that are still to run: at most, and where each of them takes seconds; those of cheap
        forwards, which run more often, aside.
        """

    def measure(self, batch_sizes: Sequence[int], control: str) -> Timing:
        frames = self._window_frames
        self._least = 2 + (frames or 1)
        self._left = self._least + REPEATS * (sum(batch_sizes) + frames)
        window_s: dict[int, float] = {}
        known_s, commit_s = self._commit_seconds(self._first)
        if frames:
            window_s = self._seconds(
                self._first, {size * frames: size for size in batch_sizes[:1]}, known_s, commit_s
            )
        writes, reads = self._find(lambda num: num > 0), self._find(lambda num: num == 0)
        known_s, read_s = (None, 0.0) if reads is None else self._commit_seconds(reads)
        write_s = 0.0 if writes is None else self._commit_seconds(writes)[1]
        row = reads or self._row(1)
        row_s = self._seconds(row, {size: size for size in batch_sizes}, known_s, read_s)
        more_s = max(0.0, write_s - read_s) if writes is not None else 0.0
        is_controlled = bool(control) and self._operator.kind is OperatorKind.DENOISE
        control_s = self._control_seconds(row, control, row_s[1] - read_s) if is_controlled else 0.0
        return Timing(row_s, window_s, more_s, self._bytes[False], self._bytes[True], control_s)

    def warm_up(self, sizes: Sequence[int]) -> None:
        """See `warm_up`. The past must be empty; afterwards it has a few frames."""
        self._commit_seconds(self._first)
        rows = [self._find(lambda num: num > 0), self._find(lambda num: num == 0)]
        for row, size in product(filter(None, rows), sizes):
            try:
                for _ in range(NEW_TWICE):
                    self._forward_seconds([row] * size)
            except Exception as error:  # Sizes that do not fit are not formed later, either.
                if failure_of(error) is not Failure.NO_MEMORY:
                    raise
                release_unused()

    def row_seconds(self) -> float:
        """The fastest of a few forwards."""
        row = self._row(0)
        return _fastest(lambda: self._forward_seconds([row]))

    def _control_seconds(self, row: Row, control: str, plain_s: float) -> float:
        """What the row's forward takes more than `plain_s` with a control."""
        settings = replace(self._spec.settings, controls=(WeightedControl(control),))
        shown = torch.full((self._spec.height, self._spec.width, 3), 128, dtype=torch.uint8)
        planes = {**self._payload, control_plane(control): shown}
        course, came = Course(settings, [self._operator]), Frame("", row.ordinal, planes)
        frame = FrameInFlight(self._spec, settings, came, planes, course)
        controlled = Row((frame,), self._operator, self._group, float("inf"))
        for _ in range(NEW_TWICE):  # Not the time of a capture.
            self._forward_seconds([controlled])
        return max(0.0, _fastest(lambda: self._forward_seconds([controlled])) - plain_s)

    @property
    def _window_frames(self) -> int:
        """Of a window, with which the past begins; 0: it begins with a single frame."""
        is_denoising = self._operator.kind is OperatorKind.DENOISE
        return self._memory.warm_up_frames(self._spec) if is_denoising else 0

    @property
    def _first(self) -> Row:
        """What the past begins with."""
        frames = self._window_frames
        return self._window(frames) if frames else self._row(0)

    def _find(self, is_wanted: Callable[[int], bool]) -> Row | None:
        """The first row after what was written before, of whose number of writes that is true."""
        rows = map(self._row, range(1, MAX_INTERVAL + 1))
        return next((row for row in rows if is_wanted(self._memory.num_writes(row))), None)

    def _seconds(
        self, row: Row, sizes: Mapping[int, int], known_s: float | None, commit_s: float
    ) -> dict[int, float]:
        """By samples, for a number of rows each, as far as memory suffices. `known_s`: what one row took, if
        that is known.
        """
        found: dict[int, float] = {}
        for samples, size in sizes.items():
            rows, known = [row] * size, [known_s] if known_s is not None and size == 1 else []
            try:
                forward_s = _fastest(partial(self._forward_seconds, rows), known)
            except Exception as error:  # A size that does not fit is not formed while it serves, either.
                if not found or failure_of(error) is not Failure.NO_MEMORY:
                    raise
                break
            found[samples] = forward_s + size * commit_s
            if forward_s > SLOW_S:
                break
        return found

    def _forward_seconds(self, rows: Sequence[Row]) -> float:
        return self._timed(rows, lambda: self._model.forward(rows, self._memory.gather(rows)))

    def _commit_seconds(self, row: Row) -> tuple[float | None, float]:
        """Of the row's forward, None if there is no need for one; and of what it leaves, onto what was
        written before.
        """
        views = self._memory.gather([row])
        if not views:
            return None, 0.0
        done: list[Forward] = []
        forward_s = self._timed([row], lambda: done.append(self._model.forward([row], views)))
        updates = done[0].updates
        commit_s = _fastest(lambda: _seconds_of(lambda: self._memory.scatter([row], updates)))
        return forward_s, commit_s

    def _timed(self, rows: Sequence[Row], forward: Callable[[], object]) -> float:
        samples = sum(row.width for row in rows)
        if self._counter is not None:
            self._counter.reset()
        seconds = _seconds_of(forward)
        if self._counter is not None:
            known, taken = self._bytes[rows[0].warms_up], self._counter.most() - self._before
            known[samples] = max(0, taken, known.get(samples, 0))
        self._left, self._least = max(0, self._left - samples), max(0, self._least - samples)
        if self._on_progress is not None:
            left = self._least if seconds > SLOW_S else self._left
            self._on_progress(self._operator.kind, left * seconds / samples)
        return seconds

    def _row(self, ordinal: int) -> Row:
        came, course = Frame("", ordinal, self._payload), Course(self._spec.settings, [self._operator])
        frame = FrameInFlight(self._spec, self._spec.settings, came, self._payload, course)
        return Row((frame,), self._operator, self._group, float("inf"))

    def _window(self, frames: int) -> Row:
        window = tuple(self._row(n).frame for n in range(frames))
        return Row(window, self._operator, window_group(self._group), float("inf"), warms_up=True)


def _fastest(run_s: Callable[[], float], known: Sequence[float] = ()) -> float:
    """Of runs that return their seconds: as many as it pays to look at. `known`: runs that were timed."""
    tries = list(known)
    while not _is_enough(tries):
        tries.append(run_s())
    return min(tries)


def _is_enough(tries: Sequence[float]) -> bool:
    if not tries or tries[-1] > SLOW_S:
        return bool(tries)
    return len(tries) >= (MOST_REPEATS if sum(tries) < CHEAP_S else REPEATS)


def _seconds_of(run: Callable[[], object]) -> float:
    started_s = time.perf_counter()
    run()
    synchronize()
    return time.perf_counter() - started_s
