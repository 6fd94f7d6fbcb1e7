"""Sessions of every method on an engine whose UNet calls may be captured, or compiled."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import torch
from rearview.contract.memories import BankPolicy, BankSettings, CacheSettings
from rearview.contract.session import SessionSpec
from rearview.contract.settings import Guidance, NoiseRule, Settings
from rearview.engine.engine import Engine
from rearview.engine.memory.build import CacheOptions, MemoryOptions, build_memories
from rearview.engine.memory.cache.window import CacheWindow
from rearview.engine.networks.denoise import Denoiser
from rearview.engine.networks.model import DiffusionModel
from rearview.engine.scheduler import CostTable, Scheduler
from rearview.engine.weights.adapters import NO_ADAPTERS
from rearview.engine.weights.checkpoint import load_model
from rearview.engine.weights.formats import Additions
from torch import Tensor

from support.frames import content, entering
from support.tiny import SIZE, random_frames, whole_chain
from support.toy import drain

__all__ = ["MAX_BATCH", "METHODS", "engine_of", "loaded", "play"]

CPU = torch.device("cpu")
WINDOW = CacheWindow(2, 2)
MERGE = BankSettings(interval=2, fusion_threshold=0.5)
QUEUE = BankSettings(BankPolicy.QUEUE, interval=1, max_frames=2, fusion_strength=0.0)
METHODS: Mapping[str, tuple[BankSettings | None, CacheSettings | None]] = {
    "per-frame": (None, None),
    "merge": (MERGE, None),
    "queue": (QUEUE, None),
    "live2diff": (None, CacheSettings()),
    "both": (MERGE, CacheSettings()),
}
FRAMES = 18
MAX_BATCH = 4
"""Samples of a forward."""


def loaded(
    folder: Path, additions: Additions, dtype: torch.dtype = torch.float64
) -> tuple[DiffusionModel, Denoiser]:
    model = load_model(str(folder), whole_chain(), CPU, dtype, additions)
    assert isinstance(model, DiffusionModel)
    return model, model.denoisers[NO_ADAPTERS]


def engine_of(model: DiffusionModel, method: str, dtype: torch.dtype) -> Engine:
    bank, cache = METHODS[method]
    options = MemoryOptions(
        num_slots=3, height=SIZE, width=SIZE, dtype=dtype, bank=bank,
        cache=None if cache is None else CacheOptions(WINDOW), latent_scale=8,
    )  # fmt: skip
    span = whole_chain()
    return Engine(
        span, model, build_memories(span, model.layouts, options), Scheduler(CostTable(), MAX_BATCH)
    )


def play(
    model: DiffusionModel,
    method: str,
    frames: int = FRAMES,
    names: Sequence[str] = ("a", "b", "c"),
    dtype: torch.dtype = torch.float64,
) -> Mapping[tuple[str, int], Tensor]:
    """Pictures by session and ordinal. `b` is guided, `c` comes for a while, the settings of `a` change."""
    bank, cache = METHODS[method]
    engine = engine_of(model, method, dtype)
    plain = Settings("a", steps=2)
    guided = Settings("b", steps=2, guidance=Guidance.FULL, guidance_scale=1.5, noise_rule=NoiseRule.FRESH)

    def open_(name: str, settings: Settings) -> None:
        engine.open(SessionSpec(name, SIZE, SIZE, 2, settings, bank=bank, cache=cache))

    for name in {"a", "b"} & {*names}:
        open_(name, guided if name == "b" else plain)
    found: dict[tuple[str, int], Tensor] = {}
    begins, ends = frames // 2, frames - 4
    for number, frame in enumerate(random_frames(frames)):
        if number == begins and "c" in names:
            open_("c", plain)
        if number == ends:
            engine.close("c")
            engine.update("a", 1, Settings("c", steps=1, strength=0.5))
        for name in names:
            if name == "c" and not begins <= number < ends:
                continue
            ordinal = number - begins if name == "c" else number
            engine.admit(entering(name, ordinal, frame, version=int(name == "a" and number >= ends)), 0.0)
        for left in drain(engine):
            picture = content(left)
            assert picture is not None, f"{left.session_id} {left.ordinal} was lost"
            found[left.session_id, left.ordinal] = picture
    return found
