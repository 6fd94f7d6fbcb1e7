"""Measuring a model's cost table at start-up, which also warms it up.

What is measured (`Timings`) is plain numbers by kind of operator, which may outlive the process; the table
speaks of groups, which only a loaded model knows. Where a forward takes seconds it is timed once, and alone.
"""

from __future__ import annotations

from collections.abc import Collection, Hashable, Mapping, Sequence
from dataclasses import replace

import torch

from rearview.contract.chain import OperatorKind, Span
from rearview.contract.frame import DEPTH, LATENT, PICTURE
from rearview.contract.session import SessionSpec
from rearview.engine.bench import Bench, OnCalibration, TimedControls, Timing
from rearview.engine.device_memory import Counter
from rearview.engine.memory.compose import Memories
from rearview.engine.networks.model import Model, row_group
from rearview.engine.planes import Planes
from rearview.engine.rows import window_group
from rearview.engine.scheduler import CostTable
from rearview.engine.weights.checkpoint import latent_shape
from rearview.engine.weights.formats import Additions

__all__ = [
    "Timings",
    "cost_table",
    "example_payloads",
    "measure",
    "measure_costs",
    "row_seconds",
    "warm_up",
]

NO_CONTROLS = TimedControls()
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
    controls: TimedControls = NO_CONTROLS,
) -> Timings:
    """Time forwards of each kind of operator in the span, and a write; of a memory that warms up also those
    of windows. What every row writes is part of its forward's seconds.

    `payloads`: one example per operator of the span; `counter`: of the device's memory; `controls`: which
    are timed too. Nothing is left in memory.
    """
    benches = _benches(model, memory, span, spec, payloads, on_progress, counter)
    memory.allocate(spec)
    found = {kind: bench.measure(batch_sizes, controls) for kind, bench in benches.items()}
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
    draw_s = {name: seconds for timing in timings.values() for name, seconds in timing.draw_s.items()}
    return CostTable(table, write_s, control_s, ran, draw_s=draw_s)


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
) -> Mapping[OperatorKind, Bench]:
    """One for each kind of operator: what differs between steps costs nothing."""
    found: dict[OperatorKind, Bench] = {}
    for operator, payload in zip(span.operators, payloads, strict=True):
        if operator.kind not in found:
            found[operator.kind] = Bench(model, memory, spec, operator, payload, on_progress, counter)
    return found
