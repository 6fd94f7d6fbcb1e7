"""From a configuration to what a span remembers: which kinds of memory, how large, in which type."""

from __future__ import annotations

import torch

from rearview.config import CacheConfig, ModelConfig, ServiceConfig
from rearview.contract.card import has_motion, is_opaque, size_multiple
from rearview.contract.chain import Span
from rearview.contract.controls import ControlPicture
from rearview.control.methods import default_bank
from rearview.engine.ahead import Ahead
from rearview.engine.devices import pick_dtype
from rearview.engine.memory.build import CacheOptions, Layouts, MemoryOptions, build_memories
from rearview.engine.memory.cache.window import CacheWindow
from rearview.engine.memory.compose import Memories
from rearview.engine.networks.model import Model
from rearview.engine.weights.checkpoint import latent_shape
from rearview.engine.weights.formats import Additions, ControlFile, LoraFile, ReferenceFile
from rearview.errors import ConfigError

__all__ = ["additions", "memories_of"]

STORAGE = {
    "float32": torch.float32,
    "float16": torch.float16,
    "bfloat16": torch.bfloat16,
    "float8": torch.float8_e4m3fn,
}


def additions(model: ModelConfig) -> Additions:
    """What the configuration replaces or adds to the checkpoint."""
    sets = {name: [LoraFile(one.path, one.scale) for one in files] for name, files in model.adapters.items()}
    given = model.reference
    return Additions(
        vae=model.vae,
        lcm_lora=model.lcm_lora,
        adapters={name: files for name, files in sets.items() if name not in model.merged_adapters},
        merged={name: sets[name] for name in model.merged_adapters},
        single_file_config=model.single_file_config,
        motion=model.motion,
        depth=model.depth,
        beta_schedule=model.beta_schedule,
        controls={
            name: ControlFile(one.path, ControlPicture(one.picture), one.depth)
            for name, one in model.controls.items()
        },
        clip_skip=model.clip_skip,
        reference=None if given is None else ReferenceFile(given.path, given.image_encoder),
    )


def memories_of(
    config: ServiceConfig,
    span: Span,
    model: Model,
    device: torch.device,
    num_slots: int,
    ahead: Ahead,
) -> Memories:
    """What is configured and the span can use, with room for so many sessions. Raises ConfigError for a
    cache that the model cannot have.
    """
    layouts = model.layouts
    cache = None if config.cache is None else _cache_options(config, config.cache, layouts)
    options = MemoryOptions(
        num_slots=num_slots,
        height=config.model.height,
        width=config.model.width,
        dtype=pick_dtype(config.model.dtype, device),
        device=device,
        latent_scale=_latent_scale(config.model),
        bank=None if config.bank is None else default_bank(config.bank),
        cache=cache,
        ahead=ahead,
    )
    try:
        return build_memories(span, layouts, options)
    except ValueError as error:
        raise ConfigError(f"cache.sink_frames, cache.ring_frames: {error}") from None


def _cache_options(config: ServiceConfig, chosen: CacheConfig, layouts: Layouts) -> CacheOptions:
    has_networks = not is_opaque(config.model.checkpoint)
    if chosen.default and has_networks and not has_motion(config.model.checkpoint, config.model.motion):
        raise ConfigError("cache.default: the model has no motion modules: set model.motion")
    multiple = size_multiple(config.model.checkpoint)
    if layouts.cache is not None and (config.model.width % multiple or config.model.height % multiple):
        raise ConfigError(f"cache: model.width and model.height must be multiples of {multiple}")
    return CacheOptions(CacheWindow(chosen.sink_frames, chosen.ring_frames), STORAGE.get(chosen.storage))


def _latent_scale(model: ModelConfig) -> int:
    _, latent_height, _ = latent_shape(model.checkpoint, model.height, model.width, additions(model))
    return model.height // latent_height
