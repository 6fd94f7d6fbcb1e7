"""From a configuration to the engine of one span: networks, memory, measured costs."""

from __future__ import annotations

import torch

from rearview.config import ModelConfig, ServiceConfig, SpanConfig
from rearview.engine.calibration import example_payloads, measure_costs
from rearview.engine.card import ModelCard
from rearview.engine.chain import OperatorKind, Span
from rearview.engine.checkpoint import latent_shape, load_model, pick_device, pick_dtype
from rearview.engine.engine import Engine
from rearview.engine.formats import Additions, LoraFile
from rearview.engine.memory.feature_bank import BankShape, FeatureBank
from rearview.engine.memory.layers import KeptOutputs
from rearview.engine.memory.memoryless import Memoryless
from rearview.engine.memory.protocol import TemporalMemory
from rearview.engine.model import DiffusionModel, Model
from rearview.engine.scheduler import Scheduler
from rearview.engine.session import MergeMetric, SessionSpec, Settings
from rearview.stages.methods import default_bank

__all__ = ["build_engine"]


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
    bank = default_bank(config.bank) if config.bank and isinstance(memory, FeatureBank) else None
    size = (config.model.width, config.model.height, config.model.max_steps)
    spec = SessionSpec("", *size, settings, bank=bank)
    sizes = [size for size in BATCH_SIZES[device.type != "cpu"] if size <= span_config.max_batch]
    payloads = example_payloads(config.model.checkpoint, span, spec, additions(config.model))
    costs = measure_costs(model, memory, span, spec, payloads, sizes, tuple(config.model.adapters))
    return Engine(span, model, memory, Scheduler(costs, span_config.max_batch))


def additions(model: ModelConfig) -> Additions:
    """What the configuration replaces or adds to the checkpoint."""
    sets = {name: [LoraFile(one.path, one.scale) for one in files] for name, files in model.adapters.items()}
    return Additions(model.vae, model.lcm_lora, sets, model.single_file_config)


def _memory(
    config: ServiceConfig,
    span_config: SpanConfig,
    span: Span,
    model: Model,
    device: torch.device,
    dtype: torch.dtype,
) -> TemporalMemory:
    """A feature bank where the span denoises and banks are configured; else only slots."""
    layout = model.bank_layout if isinstance(model, DiffusionModel) else None
    if config.bank is None or layout is None:
        return Memoryless(span_config.slots)
    default = default_bank(config.bank)
    size = (config.model.height, config.model.width)
    _, latent_height, _ = latent_shape(config.model.checkpoint, *size, additions(config.model))
    shape = BankShape(
        num_slots=span_config.slots,
        steps=tuple(op.step for op in span.operators if op.kind is OperatorKind.DENOISE),
        height=config.model.height,
        width=config.model.width,
        size_frames=default.size_frames,
        kept_outputs=KeptOutputs.ALL if default.metric is MergeMetric.OUTPUTS else KeptOutputs.FUSED,
        latent_scale=config.model.height // latent_height,
    )
    return FeatureBank(layout, shape, dtype=dtype, device=device)
