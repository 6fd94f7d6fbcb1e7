"""The bundled clip through an engine in this process, in every way that a model allows: no service."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import torch

    from rearview.client.answers import Image
    from rearview.contract.session import SessionSpec
    from rearview.contract.settings import Settings
    from rearview.engine.memory.compose import Memories
    from rearview.engine.networks.model import DiffusionModel

__all__ = ["bundled_frames", "translate", "ways", "whole_span"]


def whole_span(steps: int) -> Any:
    """The span of topology `fused`."""
    from rearview.contract.chain import Span, chain

    return Span("fused", chain(steps))


def bundled_frames(frames: int, size: int) -> list[Image]:
    """The first of the bundled clip, (size, size, 3) uint8."""
    from itertools import islice

    from rearview.client.media import Fit, open_source
    from rearview.samples import sample_clip_path

    pictures = open_source(str(sample_clip_path())).pictures(size, size, Fit.CROP)
    return [picture.image for picture in islice(pictures, frames)]


def ways(
    model: DiffusionModel, settings: Settings, size: int, dtype: torch.dtype, device: torch.device
) -> Iterator[tuple[SessionSpec, Memories]]:
    """Every way in which the model can translate: a session named after it, and its memory."""
    from rearview.contract.memories import BankSettings, CacheSettings
    from rearview.contract.session import SessionSpec
    from rearview.engine.memory.build import CacheOptions, MemoryOptions, build_memories

    specs = [SessionSpec("per frame", size, size, settings.steps, settings)]
    specs.append(replace(specs[0], session_id="feature bank", bank=BankSettings()))
    if model.layouts.cache is not None:
        specs.append(replace(specs[0], session_id="motion modules", cache=CacheSettings()))
    for spec in specs:
        options = MemoryOptions(
            num_slots=1,
            height=size,
            width=size,
            dtype=dtype,
            device=device,
            bank=spec.bank,
            cache=None if spec.cache is None else CacheOptions(),
        )
        yield spec, build_memories(whole_span(settings.steps), model.layouts, options)


def translate(
    model: DiffusionModel, memory: Memories, spec: SessionSpec, clip: Sequence[Image]
) -> tuple[list[Image], list[float]]:
    """The clip's pictures, one frame after another, and the seconds that each took."""
    import torch

    from rearview.contract.frame import PICTURE
    from rearview.engine.engine import Engine
    from rearview.engine.player import Player, planes_of
    from rearview.engine.scheduler import CostTable, Scheduler

    player = Player(Engine(whole_span(spec.max_steps), model, memory, Scheduler(CostTable(), 1)))
    player.open(spec)
    pictures: dict[int, Image] = {}
    latencies_s = []
    for ordinal, image in enumerate(clip):
        started_s = time.perf_counter()
        player.admit(spec.session_id, ordinal, {PICTURE: torch.from_numpy(image.copy())})
        pictures |= {frame.ordinal: planes_of(frame)[PICTURE].numpy() for frame in player.left()}
        latencies_s.append(time.perf_counter() - started_s)
    return [pictures[ordinal] for ordinal in sorted(pictures)], latencies_s
