"""What replicas are known to need of memory before anything is loaded: weights and pools, told by files.

No torch: a command asks it before it starts a process. What the files do not tell is left out, so all sums
are of what is certain.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from rearview.config import ModelConfig, ServiceConfig, SpanConfig
from rearview.contract.card import is_hub_id, is_opaque
from rearview.contract.chain import OperatorKind, Span
from rearview.contract.memories import MergeMetric
from rearview.contract.memory_plan import Budget, MemoryPlan, Part, plan_memory, told
from rearview.contract.weight_files import UNetShapes, elements_of, latent_scale_of, shapes_in, shapes_of
from rearview.control.methods import default_bank
from rearview.errors import ConfigError
from rearview.machine import Machine

__all__ = ["check_host", "check_together", "known_plan", "sharing"]

ITEM_BYTES = {"float64": 8, "float32": 4, "bfloat16": 2, "float16": 2, "float8": 1}


def sharing(config: ServiceConfig, span: SpanConfig, *, on_cpu: bool) -> tuple[int, float]:
    """How many replicas have a device's memory together, and which share of it is reserved for each. A host's
    memory, and a device of which nobody reserves anything, is for all replicas that the service may have.
    """
    if on_cpu or not span.num_gpus:
        return sum(each.max_replicas or each.replicas for each in config.spans), 1.0
    return 1, min(1.0, span.num_gpus)


def known_plan(config: ServiceConfig, span: SpanConfig, dtype: str, budget: Budget) -> MemoryPlan:
    """The plan of a replica as far as it is known. `dtype`: of the networks, by name. With `slots: auto` as
    many as fit by what is known, at least one. Raises ConfigError if it is known not to fit.
    """
    parts = [Part("weights", _weights(config.model, span) * ITEM_BYTES[dtype])]
    return plan_memory(span.name, budget, parts, _slot(config, span, dtype), span.fixed_slots)


def check_host(config: ServiceConfig, machine: Machine) -> None:
    """Raises ConfigError for a service that is known not to fit into this machine, if it runs here alone and
    on the CPU for sure.
    """
    model = config.model
    is_on_cpu = model.device == "cpu" or (model.device == "auto" and not machine.may_accelerate)
    if is_on_cpu and machine.memory_bytes:
        dtype = model.dtype if model.dtype != "auto" else _least_dtype(machine)
        check_together(config, dtype, machine.memory_bytes)


def check_together(config: ServiceConfig, dtype: str, num_bytes: int) -> None:
    """Raises ConfigError for replicas that are known not to fit together into a machine's memory. `dtype`: of
    the networks, by name.
    """
    # Of `auto` one slot is certain.
    budget = Budget("this machine", num_bytes, num_bytes, most_slots=1)
    needs = [(span, known_plan(config, span, dtype, budget).certain_bytes) for span in config.spans]
    total = sum(span.replicas * num_bytes for span, num_bytes in needs)
    if total > num_bytes:
        terms = ", ".join(f"{span.replicas} x {span.name} {told(num_bytes)}" for span, num_bytes in needs)
        raise ConfigError(
            f"the service needs {told(total)} of memory, and {budget.where} has {told(num_bytes)}:"
            f" {terms}. Lower replicas or slots of the spans"
        )


def _least_dtype(machine: Machine) -> str:
    """`auto` computes in this on the machine's CPU, or in something wider."""
    return "bfloat16" if "avx512_bf16" in machine.cpu_flags else "float32"


def _weights(model: ModelConfig, span: SpanConfig) -> int:
    """Elements."""
    kinds = Span.parse(span.name, span.operators).kinds
    elements = 0
    if kinds & {OperatorKind.ENCODE, OperatorKind.DECODE}:
        elements += elements_of(shapes_of(model.checkpoint, "vae", model.vae))
    if OperatorKind.ENCODE in kinds:
        # Of controls that name the same one it is loaded once.
        depths = {model.depth, *(control.depth for control in model.controls.values())} - {""}
        elements += sum(elements_of(shapes_in(Path(depth), "")) for depth in depths if not is_hub_id(depth))
    if OperatorKind.DENOISE in kinds:
        shapes = _unet(model)
        texts = (shapes_of(model.checkpoint, part) for part in ("text_encoder", "text_encoder_2"))
        elements += sum(map(elements_of, (shapes.unet, shapes.motion, *texts)))
        controls = [control.path for control in model.controls.values()]
        others = [] if (one := model.reference) is None else [one.path, one.image_encoder]
        here = [path for path in (*controls, *others) if not is_hub_id(path)]
        elements += sum(elements_of(shapes_in(Path(path), "")) for path in here)
    return elements


def _slot(config: ServiceConfig, span: SpanConfig, dtype: str) -> Mapping[str, int]:
    """Bytes of a session, by kind of memory."""
    model, steps = config.model, len(Span.parse(span.name, span.operators).steps)
    scale = None if is_opaque(model.checkpoint) else latent_scale_of(model.checkpoint, model.vae)
    if scale is None or not steps:
        return {}
    shapes, size = _unet(model), (model.height // scale, model.width // scale)
    found: dict[str, int] = {}
    if config.bank is not None and shapes.unet:
        bank = default_bank(config.bank)
        keeps_all = bank.metric is MergeMetric.OUTPUTS
        elements = shapes.bank_elements(*size, bank.size_frames, keeps_all=keeps_all)
        found["bank"] = steps * elements * ITEM_BYTES[dtype]
    if config.cache is not None and shapes.unet and shapes.motion:
        frames = config.cache.sink_frames + config.cache.ring_frames
        storage = dtype if config.cache.storage == "auto" else config.cache.storage
        found["cache"] = steps * shapes.cache_elements(*size, frames) * ITEM_BYTES[storage]
    return found


def _unet(model: ModelConfig) -> UNetShapes:
    motion = shapes_of(model.checkpoint, "motion_adapter", model.motion)
    return UNetShapes(shapes_of(model.checkpoint, "unet"), motion)
