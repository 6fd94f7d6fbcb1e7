"""Measuring a model's cost table at start-up, which also warms it up."""

from __future__ import annotations

import time
from collections.abc import Callable, Hashable, Mapping, Sequence
from dataclasses import replace

import torch
from torch import Tensor

from rearview.contract.chain import Operator, OperatorKind, Span
from rearview.contract.frame import DEPTH, LATENT, PICTURE, Frame
from rearview.contract.session import SessionSpec
from rearview.engine.memory.compose import Memories
from rearview.engine.networks.model import Model, row_group
from rearview.engine.rows import FrameInFlight, Row, window_group
from rearview.engine.scheduler import CostTable
from rearview.engine.weights.checkpoint import latent_shape
from rearview.engine.weights.formats import Additions

__all__ = ["example_payloads", "measure_costs"]

Planes = Mapping[str, Tensor]

REPEATS = 2
"""The faster of so many runs counts: the first ones also allocate."""
MAX_INTERVAL = 4096
"""Ordinals among which a row that writes, and one that does not, are looked for."""


def measure_costs(
    model: Model,
    memory: Memories,
    span: Span,
    spec: SessionSpec,
    payloads: Sequence[Planes],
    batch_sizes: Sequence[int] = (1, 2),
    adapter_sets: Sequence[str] = (),
) -> CostTable:
    """Time forwards of each kind of operator in the span, in seconds by number of rows, and a write; of a
    memory that warms up also those of windows, by number of samples. What every row writes is part of its
    forward's seconds.

    `payloads`: one example per operator of the span. Nothing is left in memory. `adapter_sets`: rows
    under these cost what rows without do, since only the weights differ.
    """
    table: dict[Hashable, dict[int, float]] = {}
    seen: set[OperatorKind] = set()
    write_s = 0.0
    memory.allocate(spec)
    for operator, payload in zip(span.operators, payloads, strict=True):
        if operator.kind in seen:
            continue
        seen.add(operator.kind)
        bench = _Bench(model, memory, spec, operator, payload)
        costs, more_s = bench.measure(batch_sizes)
        write_s = max(write_s, more_s)
        table |= costs
        for adapters in adapter_sets:
            under = row_group(model, memory, spec, replace(spec.settings, adapters=adapters), operator)
            table |= {window_group(under) if known != bench.group else under: costs[known] for known in costs}
    memory.free(spec.session_id)
    return CostTable(table, write_s)


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


class _Bench:
    """Rows of one session and one operator. Frames of one session are not in one forward: so forwards are of
    one row many times, and what a row commits is timed apart.
    """

    def __init__(
        self, model: Model, memory: Memories, spec: SessionSpec, operator: Operator, payload: Planes
    ) -> None:
        self._model, self._memory, self._spec = model, memory, spec
        self._operator, self._payload = operator, payload
        self.group = row_group(model, memory, spec, spec.settings, operator)

    def measure(self, batch_sizes: Sequence[int]) -> tuple[dict[Hashable, dict[int, float]], float]:
        """Seconds by group and samples, and seconds more of a write; 0 where none is ever due."""
        costs: dict[Hashable, dict[int, float]] = {}
        frames = self._memory.warm_up_frames(self._spec)
        if frames and self._operator.kind is OperatorKind.DENOISE:
            window = self._window(frames)
            sizes = {size * frames: size for size in batch_sizes[:1]}
            costs[window.group] = self._seconds(window, sizes, self._commit_seconds(window))
        else:
            self._commit_seconds(self._row(0))
        writes, reads = self._find(lambda num: num > 0), self._find(lambda num: num == 0)
        read_s = 0.0 if reads is None else self._commit_seconds(reads)
        write_s = 0.0 if writes is None else self._commit_seconds(writes)
        row = reads or self._row(1)
        costs[self.group] = self._seconds(row, {size: size for size in batch_sizes}, read_s)
        return costs, max(0.0, write_s - read_s) if writes is not None else 0.0

    def _find(self, is_wanted: Callable[[int], bool]) -> Row | None:
        """The first row after what was written before, of whose number of writes that is true."""
        rows = map(self._row, range(1, MAX_INTERVAL + 1))
        return next((row for row in rows if is_wanted(self._memory.num_writes(row))), None)

    def _seconds(self, row: Row, sizes: Mapping[int, int], commit_s: float) -> dict[int, float]:
        """By samples, for a number of rows each."""
        return {
            samples: min(self._forward_seconds([row] * size) for _ in range(REPEATS)) + size * commit_s
            for samples, size in sizes.items()
        }

    def _forward_seconds(self, rows: Sequence[Row]) -> float:
        return _seconds_of(lambda: self._model.forward(rows, self._memory.gather(rows)))

    def _commit_seconds(self, row: Row) -> float:
        """Of what one row leaves, onto what was written before."""
        views = self._memory.gather([row])
        if not views:
            return 0.0
        updates = self._model.forward([row], views).updates
        return min(_seconds_of(lambda: self._memory.scatter([row], updates)) for _ in range(REPEATS))

    def _row(self, ordinal: int) -> Row:
        came = Frame("", ordinal, self._payload)
        frame = FrameInFlight(self._spec, self._spec.settings, came, self._payload, (self._operator,))
        return Row((frame,), self._operator, self.group, float("inf"))

    def _window(self, frames: int) -> Row:
        window = tuple(self._row(n).frame for n in range(frames))
        return Row(window, self._operator, window_group(self.group), float("inf"), warms_up=True)


def _seconds_of(run: Callable[[], object]) -> float:
    started_s = time.perf_counter()
    run()
    if torch.cuda.is_initialized():
        torch.cuda.synchronize()
    return time.perf_counter() - started_s
