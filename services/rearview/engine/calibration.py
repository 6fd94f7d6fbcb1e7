"""Measuring a model's cost table at start-up, which also warms it up."""

from __future__ import annotations

import time
from collections.abc import Hashable, Sequence

import torch
from torch import Tensor

from rearview.engine.chain import Operator, OperatorKind, Span
from rearview.engine.memory.protocol import TemporalMemory
from rearview.engine.model import Model
from rearview.engine.rows import Frame, Row
from rearview.engine.scheduler import CostTable
from rearview.engine.session import SessionSpec, Settings

__all__ = ["example_payloads", "measure_costs"]

REPEATS = 2
"""The faster of so many runs counts: the first ones also allocate."""


def measure_costs(
    model: Model,
    memory: TemporalMemory,
    span: Span,
    spec: SessionSpec,
    payloads: Sequence[Tensor],
    batch_sizes: Sequence[int] = (1, 2),
) -> CostTable:
    """Time forwards of each kind of operator in the span, in seconds by number of rows.

    `payloads`: one example per operator of the span. Nothing is left in memory.
    """
    table: dict[Hashable, dict[int, float]] = {}
    seen: set[OperatorKind] = set()
    memory.allocate(spec)
    for operator, payload in zip(span.operators, payloads, strict=True):
        if operator.kind in seen:
            continue
        seen.add(operator.kind)
        group = model.group(spec, spec.settings, operator)
        table[group] = {
            size: min(
                _time(model, memory, [_row(spec, operator, group, payload)] * size) for _ in range(REPEATS)
            )
            for size in batch_sizes
        }
    memory.free(spec.session_id)
    return CostTable(table)


def example_payloads(span: Span, spec: SessionSpec, latent_shape: tuple[int, ...]) -> list[Tensor]:
    """Grey frames and zero latents for `measure_costs`."""
    image = torch.full((spec.height, spec.width, 3), 128, dtype=torch.uint8)
    latent = torch.zeros(latent_shape, dtype=torch.float32)
    return [image if operator.kind is OperatorKind.ENCODE else latent for operator in span.operators]


def _row(spec: SessionSpec, operator: Operator, group: Hashable, payload: Tensor) -> Row:
    settings: Settings = spec.settings
    frame = Frame(spec, 0, settings, 0, payload, float("inf"), (operator,))
    return Row(frame, operator, group, float("inf"))


def _time(model: Model, memory: TemporalMemory, rows: Sequence[Row]) -> float:
    started_s = time.perf_counter()
    model.forward(rows, memory.gather(rows))
    return time.perf_counter() - started_s
