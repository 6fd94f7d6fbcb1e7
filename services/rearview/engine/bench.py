"""Rows of one session and one operator, run to see how long they take, and how much memory.

Frames of one session are not in one forward: so forwards are of one row many times, and what a row commits is
timed apart.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from itertools import product

import torch

from rearview.contract.chain import Operator, OperatorKind
from rearview.contract.controls import MAX_CONTROLS, WeightedControl
from rearview.contract.failure import Failure
from rearview.contract.frame import PICTURE, Frame, control_plane
from rearview.contract.session import SessionSpec
from rearview.engine.course import Course
from rearview.engine.device_memory import Counter
from rearview.engine.devices import release_unused, synchronize
from rearview.engine.failures import failure_of
from rearview.engine.memory.compose import Memories
from rearview.engine.networks.model import Forward, Model, row_group
from rearview.engine.planes import Planes
from rearview.engine.rows import FrameInFlight, Row, window_group

__all__ = ["Bench", "OnCalibration", "TimedControls", "Timing"]

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
ROWS, WINDOWS, CONTROLLED = "rows", "windows", "controlled"
"""Kinds of forwards whose memory is counted apart."""


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
    control_bytes: Mapping[int, int] = field(default_factory=dict)
    """The same as `row_bytes`, of rows with as many controls as a session may have."""
    draw_s: Mapping[str, float] = field(default_factory=dict)
    """By name of a control, seconds more of drawing what it is shown of one frame; none where nothing is."""


@dataclass(frozen=True, slots=True)
class TimedControls:
    """Which controls are timed beside rows."""

    names: Sequence[str] = ()
    """In denoising steps the first one stands for all: it should be the largest."""
    drawn: Collection[str] = ()
    """Those of them whose pictures are drawn where frames are encoded."""


class Bench:
    """Of one session and operator."""

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
        self._bytes: dict[str, dict[int, int]] = {ROWS: {}, WINDOWS: {}, CONTROLLED: {}}
        """By samples."""
        self._model, self._memory, self._spec = model, memory, spec
        self._operator, self._payload = operator, payload
        self._on_progress = on_progress
        self._group = row_group(model, memory, spec, spec.settings, operator)
        self._left = self._least = 0
        """Samples that are still to run: at most, and where each of them takes seconds; those of cheap
        forwards, which run more often, aside.
        """

    def measure(self, batch_sizes: Sequence[int], controls: TimedControls) -> Timing:
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
        control_s, draw_s = self._control_seconds(row, controls, row_s[1] - read_s)
        if self._counter is not None and self._is_controlled(controls):
            dearest = sorted(draw_s, key=draw_s.__getitem__, reverse=True) or controls.names
            self._count_bytes(self._controlled(row, dearest[:MAX_CONTROLS]), tuple(row_s))
        known = self._bytes
        return Timing(
            row_s, window_s, more_s, known[ROWS], known[WINDOWS], control_s, known[CONTROLLED], draw_s
        )

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

    def _control_seconds(
        self, row: Row, controls: TimedControls, plain_s: float
    ) -> tuple[float, dict[str, float]]:
        """See `Timing.control_s` and `draw_s`. `plain_s`: what the row's forward takes without any."""
        kind = self._operator.kind
        if kind is OperatorKind.DENOISE and controls.names:
            return self._more_seconds(self._controlled(row, controls.names[:1]), plain_s), {}
        drawn = sorted(controls.drawn) if kind is OperatorKind.ENCODE else ()
        return 0.0, {name: self._more_seconds(self._controlled(row, [name]), plain_s) for name in drawn}

    def _is_controlled(self, controls: TimedControls) -> bool:
        kind = self._operator.kind
        draws = kind is OperatorKind.ENCODE and bool(controls.drawn)
        return draws or (kind is OperatorKind.DENOISE and bool(controls.names))

    def _controlled(self, row: Row, names: Sequence[str]) -> Row:
        """The same row under these controls; in a step with what they are shown. What is drawn for them is
        drawn of a frame that shows something.
        """
        settings = replace(self._spec.settings, controls=tuple(map(WeightedControl, names)))
        shape, generator = (self._spec.height, self._spec.width, 3), torch.Generator().manual_seed(0)
        shown = torch.randint(0, 256, shape, generator=generator, dtype=torch.uint8)
        planes = {**self._payload, **{control_plane(name): shown for name in names}}
        if self._operator.kind is OperatorKind.ENCODE:
            planes = {**self._payload, PICTURE: shown}
        course, came = Course(settings, [self._operator]), Frame("", row.ordinal, planes)
        frame = FrameInFlight(self._spec, settings, came, planes, course)
        return Row((frame,), self._operator, self._group, float("inf"))

    def _more_seconds(self, row: Row, plain_s: float) -> float:
        for _ in range(NEW_TWICE):  # Not the time of a capture.
            self._forward_seconds([row])
        return max(0.0, _fastest(lambda: self._forward_seconds([row])) - plain_s)

    def _count_bytes(self, row: Row, sizes: Sequence[int]) -> None:
        """Run forwards of so many of it, as far as memory suffices and they are quick."""
        for size in sizes:
            try:
                seconds = self._forward_seconds([row] * size)
            except Exception as error:
                if failure_of(error) is not Failure.NO_MEMORY:
                    raise
                release_unused()
                return
            if seconds > SLOW_S:
                return

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
            known, taken = self._bytes[_kind_of(rows[0])], self._counter.most() - self._before
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


def _kind_of(row: Row) -> str:
    if row.warms_up:
        return WINDOWS
    return CONTROLLED if row.controls or row.draws else ROWS


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
