"""From a configuration to the engine of one span: networks, memory, measured costs."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace

import torch

from rearview.config import ModelConfig, ServiceConfig, SpanConfig
from rearview.contract.card import ModelCard, is_opaque
from rearview.contract.chain import OperatorKind, Span
from rearview.contract.cost import FrameCost
from rearview.contract.memory_plan import MemoryPlan
from rearview.contract.reference import GREY, NO_IMAGE
from rearview.contract.session import SessionSpec
from rearview.contract.settings import Settings
from rearview.control.methods import default_bank, default_cache
from rearview.engine.acceleration.graphs import CudaRecorder
from rearview.engine.ahead import Ahead
from rearview.engine.bench import TimedControls
from rearview.engine.calibration import Timings, cost_table, example_payloads, measure, row_seconds
from rearview.engine.device_memory import counter_of
from rearview.engine.devices import draws_ahead, make_current, pick_device, pick_dtype
from rearview.engine.engine import Engine
from rearview.engine.memory.compose import Memories
from rearview.engine.networks.model import DiffusionModel, Model, row_group
from rearview.engine.networks.noise import NoiseStore
from rearview.engine.planes import Planes
from rearview.engine.scheduler import CostTable, Scheduler
from rearview.engine.weights.checkpoint import load_model
from rearview.replica.captured import capture_span, captures, sizes_up_to
from rearview.replica.compiled import use_compiled
from rearview.replica.kept import KeptTimings, kernels_of, key_of
from rearview.replica.memories import additions, memories_of
from rearview.replica.planning import Planning

__all__ = [
    "Measuring",
    "OnBuilt",
    "OnPlanned",
    "OnProgress",
    "Parts",
    "bare",
    "build_engine",
    "controls_to_time",
    "costs_of",
    "examples",
    "kernels_in",
    "parts_of",
    "payloads",
]

OnProgress = Callable[[str], None]
"""Is told in a few words what takes seconds. On the thread that builds."""
OnPlanned = Callable[[MemoryPlan], None]
"""Is told the plan of the replica's memory, on that thread, before its slots are made."""

MEASURED_SLOTS = 1
"""What costs are measured with: the other slots come when it is known how many there may be."""
TELL_FROM_S = 3.0
"""What takes less is not worth a word."""
BATCH_SIZES = ((1, 2), (1, 2, 4, 8, 16, 32))
"""Rows that are timed at start-up: on a CPU, where batches gain little and cost seconds; elsewhere."""


@dataclass(frozen=True)
class Parts:
    """What an engine of a span is put together from."""

    span: Span
    model: Model
    memory: Memories
    device: torch.device
    ahead: Ahead
    """Draws what its model and memory need."""


OnBuilt = Callable[[Parts, str], None]
"""Is told what an engine was put together from, and what of it runs compiled, on that thread."""


def parts_of(config: ServiceConfig, span_config: SpanConfig, num_slots: int) -> Parts:
    """Load the span's networks, and make room for so many sessions. Blocks for seconds."""
    torch.set_num_threads(span_config.num_threads)
    span = Span.parse(span_config.name, span_config.operators)
    device = pick_device(config.model.device)
    make_current(device)
    dtype = pick_dtype(config.model.dtype, device)
    executor = ThreadPoolExecutor(1, thread_name_prefix="ahead") if draws_ahead(device) else None
    ahead = Ahead(executor, pinned=device.type == "cuda")
    noise = NoiseStore(ahead)
    model = load_model(config.model.checkpoint, span, device, dtype, additions(config.model), noise)
    return Parts(span, model, memories_of(config, span, model, device, num_slots, ahead), device, ahead)


def build_engine(
    config: ServiceConfig,
    span_config: SpanConfig,
    on_progress: OnProgress | None = None,
    on_planned: OnPlanned | None = None,
    on_built: OnBuilt | None = None,
) -> Engine:
    """Load the span's networks, measure their costs, plan its memory and take it. Blocks for seconds. Raises
    ConfigError, before it loads anything if it is known that memory does not suffice.
    """
    planning = Planning(config, span_config, pick_device(config.model.device))
    with planning.taking("the weights"):
        parts = parts_of(config, span_config, MEASURED_SLOTS)
    span, model, device, memory, ahead = parts.span, parts.model, parts.device, parts.memory, parts.ahead
    specs = list(examples(config, memory))
    planning.loaded(model, memory.bytes_by_kind(specs[-1]))
    compiled = use_compiled(config, span_config, model, device)
    measuring = Measuring(config, span_config, parts, compiled)
    with planning.taking("the smallest forward"):
        timings, ran_here = measuring.of(specs, on_progress or _silent)
    plan = planning.plan(timings, None if captures(config, device) else 0)
    (on_planned or _silent)(plan)
    del memory, parts, measuring  # That slot is not in the plan.
    with planning.taking("the slots"):
        memory = memories_of(config, span, model, device, plan.slots, ahead)
    if captures(config, device) and isinstance(model, DiffusionModel):
        captured = dict.fromkeys(each for spec in (*specs, _plain(specs[0])) for each in (spec, bare(spec)))
        kinds = [(spec, payloads(config, span, spec)) for spec in captured]
        capture_span(
            span, model, memory, kinds, span_config.max_batch, CudaRecorder(), on_progress or _silent
        )
        measuring = Measuring(config, span_config, Parts(span, model, memory, device, ahead), compiled)
        timings, ran_here = measuring.anew(specs, on_progress or _silent), True
    parts = Parts(span, model, memory, device, ahead)
    costs = costs_of(config, parts, list(zip(specs, timings, strict=True)), ran_here=ran_here)
    if captures(config, device):
        costs = replace(costs, sizes=sizes_up_to(span_config.max_batch))
    (on_built or _nobody_told)(parts, compiled)
    scheduler = Scheduler(costs, span_config.max_batch)
    return Engine(span, model, memory, scheduler, kernels=kernels_in(config, span_config, parts, compiled))


def kernels_in(config: ServiceConfig, span_config: SpanConfig, parts: Parts, compiled: str) -> str:
    """See `kernels_of`; empty for a model without networks. `compiled`: what of it is, in few characters."""
    if is_opaque(config.model.checkpoint):
        return ""
    return kernels_of(parts.device, span_config.num_threads, compiled + parts.memory.kernels)


def costs_of(
    config: ServiceConfig,
    parts: Parts,
    measured: Sequence[tuple[SessionSpec, Timings]],
    *,
    ran_here: bool,
) -> CostTable:
    """The table of sessions of all kinds. `ran_here`: whether their forwards have run in this process."""
    adapters, span, model, memory = tuple(config.model.merged_adapters), parts.span, parts.model, parts.memory
    tables = [
        cost_table(times, model, memory, span, spec, adapters, ran_here=ran_here) for spec, times in measured
    ]
    forward_s = {group: times for table in tables for group, times in table.forward_s.items()}
    ran = {group: sizes for table in tables for group, sizes in table.ran.items()}
    write_s, control_s = (max(getattr(table, kind) for table in tables) for kind in ("write_s", "control_s"))
    names = {name for table in tables for name in table.draw_s}
    draw_s = {name: max(table.draw_s.get(name, 0.0) for table in tables) for name in sorted(names)}
    costs = CostTable(forward_s, write_s, control_s, ran, draw_s=draw_s)
    return replace(costs, frame=_frame_cost(costs, model, memory, span, [spec for spec, _ in measured]))


@dataclass(frozen=True)
class Measuring:
    """What the span's forwards cost: as an earlier start has measured it, if that still holds, else anew."""

    config: ServiceConfig
    span_config: SpanConfig
    parts: Parts
    compiled: str
    """What runs compiled, in few characters."""

    def of(self, examples: Sequence[SessionSpec], on_progress: OnProgress) -> tuple[Sequence[Timings], bool]:
        """One for each of the `examples`, and whether they were measured in this process."""
        if is_opaque(self.config.model.checkpoint):  # Measured sooner than read.
            return self.anew(examples, on_progress), True
        kept, parts = self.kept, self.parts
        found = kept.read(len(examples))
        if found is not None:
            plain = examples[0]
            now = row_seconds(parts.model, parts.memory, parts.span, plain, self._payloads(plain))
            if kept.holds(found[0], now):
                return found, False
        measured = self.anew(examples, on_progress)
        kept.write(measured)
        return measured, True

    @property
    def kept(self) -> KeptTimings:
        """What an earlier start has measured."""
        key = key_of(self.config, self.span_config, self.parts.device)
        return KeptTimings({**key, "compiled": self.compiled})

    def anew(self, examples: Sequence[SessionSpec], on_progress: OnProgress) -> Sequence[Timings]:
        """Measured now, whatever was before; not kept."""
        return [self._measured(spec, on_progress) for spec in examples]

    def _measured(self, spec: SessionSpec, on_progress: OnProgress) -> Timings:
        parts = self.parts

        def tell(kind: OperatorKind, left_s: float) -> None:
            if left_s >= TELL_FROM_S:
                what = f"{parts.span.name}: {kind.value}"
                on_progress(f"measuring once what a frame costs ({what}), {left_s:.0f} s left")

        offered = BATCH_SIZES[parts.device.type != "cpu"]
        sizes = [size for size in offered if size <= self.span_config.max_batch]
        counter = counter_of(parts.device)
        controls, payloads = controls_to_time(self.config.model, parts.model), self._payloads(spec)
        return measure(parts.model, parts.memory, parts.span, spec, payloads, sizes, tell, counter, controls)

    def _payloads(self, spec: SessionSpec) -> Sequence[Planes]:
        return payloads(self.config, self.parts.span, spec)


def controls_to_time(config: ModelConfig, model: Model) -> TimedControls:
    """All of them, the largest first where their weights are here."""
    plain = model.denoisers.get("") if isinstance(model, DiffusionModel) else None
    sizes = {} if plain is None else {name: each.num_bytes for name, each in plain.controls.branches.items()}
    names = sorted(config.controls, key=lambda name: (-sizes.get(name, 0), name))
    return TimedControls(names, {name for name, one in config.controls.items() if one.picture != "sent"})


def payloads(config: ServiceConfig, span: Span, spec: SessionSpec) -> Sequence[Planes]:
    """What a frame of such a session carries before each operator of the span, in grey."""
    return example_payloads(config.model.checkpoint, span, spec, additions(config.model))


def _silent(told: object) -> None:
    pass


def _nobody_told(parts: Parts, compiled: str) -> None:
    pass


def examples(config: ServiceConfig, memory: Memories) -> Iterator[SessionSpec]:
    """A session of each kind whose rows cost differently: under an adapter set and with a reference image,
    which cost a little, where there are such that rows may differ in.
    """
    model = config.model
    stacked = next((name for name in model.adapters if name not in model.merged_adapters), "")
    strength = ModelCard.read(model.checkpoint).strength
    reference = NO_IMAGE if model.reference is None else GREY
    settings = Settings("warm-up", strength, steps=model.max_steps, adapters=stacked, reference=reference)
    plain = SessionSpec("", model.width, model.height, model.max_steps, settings)
    banked = (
        replace(plain, bank=default_bank(config.bank)) if config.bank and "bank" in memory.names else plain
    )
    yield banked
    if config.cache and memory.names & {"cache", "depth"}:
        yield replace(banked, cache=default_cache(config.cache))


def _plain(spec: SessionSpec) -> SessionSpec:
    """The same of a session that asks for no bank."""
    return replace(spec, bank=None)


def bare(spec: SessionSpec) -> SessionSpec:
    """The same of a session without adapters and reference."""
    return replace(spec, settings=replace(spec.settings, adapters="", reference=NO_IMAGE))


def _frame_cost(
    costs: CostTable, model: Model, memory: Memories, span: Span, examples: Sequence[SessionSpec]
) -> FrameCost:
    """`examples`: the plain session, and the one with a temporal cache if there may be any."""

    def seconds(spec: SessionSpec, *kinds: OperatorKind) -> float:
        operators = {each.kind: each for each in span.operators if each.kind in kinds}
        groups = (row_group(model, memory, spec, spec.settings, each) for each in operators.values())
        return sum(map(costs.row_s, groups))

    def step_seconds(spec: SessionSpec) -> float:
        writes_s = 0.0 if spec.bank is None else costs.write_s / spec.bank.interval
        return seconds(spec, OperatorKind.DENOISE) + writes_s

    plain, cached = examples[0], examples[-1]
    once_s = seconds(plain, OperatorKind.ENCODE, OperatorKind.DECODE)
    steps_s = step_seconds(plain), step_seconds(cached)
    pixels = plain.width * plain.height
    return FrameCost(pixels, once_s, *steps_s, span.steps, costs.control_s, costs.draw_s)
