"""From a configuration to the engine of one span: networks, memory, measured costs."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace

import torch

from rearview.config import ModelConfig, ServiceConfig, SpanConfig
from rearview.contract.card import ModelCard, has_motion, size_multiple
from rearview.contract.chain import OperatorKind, Span
from rearview.contract.memories import MergeMetric
from rearview.contract.session import SessionSpec
from rearview.contract.settings import Settings
from rearview.control.methods import default_bank, default_cache
from rearview.engine.calibration import example_payloads, measure_costs
from rearview.engine.engine import Engine
from rearview.engine.memory.bank.layers import KeptOutputs
from rearview.engine.memory.bank.pool import BankShape, FeatureBank
from rearview.engine.memory.cache.pool import CacheShape, TemporalKVCache
from rearview.engine.memory.cache.window import CacheWindow
from rearview.engine.memory.compose import JointMemory
from rearview.engine.memory.depth.pool import DepthRange
from rearview.engine.memory.memoryless import Memoryless
from rearview.engine.memory.protocol import TemporalMemory
from rearview.engine.networks.model import DiffusionModel, Model
from rearview.engine.scheduler import CostTable, Scheduler
from rearview.engine.weights.checkpoint import latent_shape, load_model, pick_device, pick_dtype
from rearview.engine.weights.formats import Additions, LoraFile
from rearview.errors import ConfigError

__all__ = ["build_engine"]


STORAGE = {
    "float32": torch.float32,
    "float16": torch.float16,
    "bfloat16": torch.bfloat16,
    "float8": torch.float8_e4m3fn,
}
BATCH_SIZES = ((1, 2), (1, 2, 4, 8, 16, 32))
"""Rows that are timed at start-up: on a CPU, where batches gain little and cost seconds; elsewhere."""


def build_engine(config: ServiceConfig, span_config: SpanConfig) -> Engine:
    """Load the span's networks, measure their costs and warm them up. Blocks for seconds."""
    torch.set_num_threads(span_config.num_threads)
    span = Span.parse(span_config.name, span_config.operators)
    device = pick_device(config.model.device)
    dtype = pick_dtype(config.model.dtype, device)
    model = load_model(config.model.checkpoint, span, device, dtype, additions(config.model))
    memory = _memory(config, span_config, span, model, device, dtype)
    settings = Settings(
        "warm-up", ModelCard.read(config.model.checkpoint).strength, steps=config.model.max_steps
    )
    size = (config.model.width, config.model.height, config.model.max_steps)
    sizes = [size for size in BATCH_SIZES[device.type != "cpu"] if size <= span_config.max_batch]
    tables = []
    for spec in _examples(config, model, memory, SessionSpec("", *size, settings)):
        payloads = example_payloads(config.model.checkpoint, span, spec, additions(config.model))
        tables.append(measure_costs(model, memory, span, spec, payloads, sizes, tuple(config.model.adapters)))
    forward_s = {group: times for table in tables for group, times in table.forward_s.items()}
    costs = CostTable(forward_s, max(table.write_s for table in tables))
    return Engine(span, model, memory, Scheduler(costs, span_config.max_batch))


def additions(model: ModelConfig) -> Additions:
    """What the configuration replaces or adds to the checkpoint."""
    sets = {name: [LoraFile(one.path, one.scale) for one in files] for name, files in model.adapters.items()}
    return Additions(
        vae=model.vae,
        lcm_lora=model.lcm_lora,
        adapters=sets,
        single_file_config=model.single_file_config,
        motion=model.motion,
        depth=model.depth,
        beta_schedule=model.beta_schedule,
    )


def _examples(
    config: ServiceConfig, model: Model, memory: TemporalMemory, plain: SessionSpec
) -> Iterator[SessionSpec]:
    """A session of each kind whose rows cost differently."""
    has_bank = isinstance(model, DiffusionModel) and model.bank_layout is not None
    banked = replace(plain, bank=default_bank(config.bank)) if config.bank and has_bank else plain
    yield banked
    if config.cache and isinstance(memory, JointMemory):
        yield replace(banked, cache=default_cache(config.cache))


def _memory(
    config: ServiceConfig,
    span_config: SpanConfig,
    span: Span,
    model: Model,
    device: torch.device,
    dtype: torch.dtype,
) -> TemporalMemory:
    """What is configured and the span can use: feature bank, temporal cache, range of depth; else only slots.

    Raises ConfigError for a cache that the model cannot have.
    """
    place = _Place(
        span_config.slots,
        tuple(op.step for op in span.operators if op.kind is OperatorKind.DENOISE),
        device,
        dtype,
    )
    bank = _bank(config, model, place)
    cache = _cache(config, model, place)
    keeps_range = config.cache and config.model.depth and OperatorKind.ENCODE in span.kinds
    latent_dtype = torch.float64 if dtype is torch.float64 else torch.float32
    depth = DepthRange(place.slots, device=device, dtype=latent_dtype) if keeps_range else None
    if cache is None and depth is None:
        return bank or Memoryless(place.slots)
    return JointMemory(bank, cache, depth)


@dataclass(frozen=True, slots=True)
class _Place:
    """Where a span's memory is, and for how many."""

    slots: int
    steps: tuple[int, ...]
    """Denoising step indices of the span."""
    device: torch.device
    dtype: torch.dtype


def _bank(config: ServiceConfig, model: Model, place: _Place) -> FeatureBank | None:
    layout = model.bank_layout if isinstance(model, DiffusionModel) else None
    if config.bank is None or layout is None:
        return None
    default = default_bank(config.bank)
    shape = BankShape(
        num_slots=place.slots,
        steps=place.steps,
        height=config.model.height,
        width=config.model.width,
        size_frames=default.size_frames,
        kept_outputs=KeptOutputs.ALL if default.metric is MergeMetric.OUTPUTS else KeptOutputs.FUSED,
        latent_scale=_latent_scale(config.model),
    )
    return FeatureBank(layout, shape, dtype=place.dtype, device=place.device)


def _cache(config: ServiceConfig, model: Model, place: _Place) -> TemporalKVCache | None:
    chosen = config.cache
    if chosen is None or not isinstance(model, DiffusionModel):
        return None
    if chosen.default and not has_motion(config.model.checkpoint, config.model.motion):
        raise ConfigError("cache.default: the model has no motion modules: set model.motion")
    layout = model.cache_layout
    if layout is None:
        return None
    multiple = size_multiple(config.model.checkpoint)
    if config.model.width % multiple or config.model.height % multiple:
        raise ConfigError(f"cache: model.width and model.height must be multiples of {multiple}")
    shape = CacheShape(
        num_slots=place.slots,
        steps=place.steps,
        height=config.model.height,
        width=config.model.width,
        window=CacheWindow(chosen.sink_frames, chosen.ring_frames),
        latent_scale=_latent_scale(config.model),
    )
    storage = STORAGE.get(chosen.storage, place.dtype)
    try:
        return TemporalKVCache(layout, shape, dtype=storage, device=place.device)
    except ValueError as error:
        raise ConfigError(f"cache.sink_frames, cache.ring_frames: {error}") from None


def _latent_scale(model: ModelConfig) -> int:
    _, latent_height, _ = latent_shape(model.checkpoint, model.height, model.width, additions(model))
    return model.height // latent_height
