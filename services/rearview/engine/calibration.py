"""Measuring a model's cost table at start-up, which also warms it up."""

from __future__ import annotations

import time
from collections.abc import Hashable, Mapping, Sequence
from dataclasses import replace
from itertools import count

import torch
from torch import Tensor

from rearview.contract.chain import Operator, OperatorKind, Span
from rearview.contract.frame import DEPTH, LATENT, PICTURE, Frame
from rearview.contract.session import SessionSpec
from rearview.engine.memory.protocol import TemporalMemory
from rearview.engine.networks.model import Model
from rearview.engine.rows import FrameInFlight, Row, window_group
from rearview.engine.scheduler import CostTable
from rearview.engine.weights.checkpoint import latent_shape
from rearview.engine.weights.formats import Additions

__all__ = ["example_payloads", "measure_costs"]

Planes = Mapping[str, Tensor]

REPEATS = 2
"""The faster of so many runs counts: the first ones also allocate."""


def measure_costs(
    model: Model,
    memory: TemporalMemory,
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
        group = model.group(spec, spec.settings, operator)
        costs = {}
        if operator.kind is OperatorKind.DENOISE and (frames := memory.warm_up_frames(spec)):
            row = _window_row(spec, operator, group, payload, frames)
            costs[row.group] = {
                size * frames: _fastest(model, memory, [row] * size) for size in batch_sizes[:1]
            }
        row = _row(spec, operator, group, payload)
        costs[group] = {size: _fastest(model, memory, [row] * size) for size in batch_sizes}
        table |= costs
        for adapters in adapter_sets:
            under = model.group(spec, replace(spec.settings, adapters=adapters), operator)
            table |= {window_group(under) if known != group else under: costs[known] for known in costs}
        if operator.kind is OperatorKind.DENOISE:
            write_s = _write_seconds(model, memory, spec, operator, payload)
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


def _write_seconds(
    model: Model, memory: TemporalMemory, spec: SessionSpec, operator: Operator, payload: Planes
) -> float:
    """Extra seconds of a row whose write is due, onto what was written before; 0 where none ever is."""
    group = model.group(spec, spec.settings, operator)
    first = _row(spec, operator, group, payload, write_due=True)
    if not memory.write_due(first):
        return 0.0
    _time(model, memory, [first])
    rows = (_row(spec, operator, group, payload, ordinal=n, write_due=True) for n in count(1))
    writes = next(row for row in rows if memory.write_due(row))
    reads = replace(writes, write_due=False)
    seconds = [min(_time(model, memory, [row]) for _ in range(REPEATS)) for row in (writes, reads)]
    return max(0.0, seconds[0] - seconds[1])


def _row(
    spec: SessionSpec,
    operator: Operator,
    group: Hashable,
    payload: Planes,
    *,
    ordinal: int = 0,
    write_due: bool = False,
) -> Row:
    came = Frame("", ordinal, payload)
    frame = FrameInFlight(spec, spec.settings, came, payload, (operator,))
    return Row(frame, operator, group, float("inf"), write_due)


def _window_row(spec: SessionSpec, operator: Operator, group: Hashable, payload: Planes, frames: int) -> Row:
    rows = [_row(spec, operator, group, payload, ordinal=n) for n in range(frames)]
    window = tuple(row.frame for row in rows)
    return replace(rows[-1], group=window_group(group), window=window)


def _fastest(model: Model, memory: TemporalMemory, rows: Sequence[Row]) -> float:
    return min(_time(model, memory, rows) for _ in range(REPEATS))


def _time(model: Model, memory: TemporalMemory, rows: Sequence[Row]) -> float:
    """Of a forward and its commit; frames of one session are not encoded together, so not committed."""
    started_s = time.perf_counter()
    update = model.forward(rows, memory.gather(rows)).update
    if rows[0].operator.kind is OperatorKind.DENOISE:
        memory.scatter(rows, update)
    if torch.cuda.is_initialized():
        torch.cuda.synchronize()
    return time.perf_counter() - started_s
