"""One frame through an engine and through diffusers' own pipelines, under the same noise."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import pytest
from rearview.contract.chain import Span
from rearview.contract.settings import Settings
from rearview.engine.engine import Engine
from rearview.engine.memory.memoryless import Memoryless
from rearview.engine.networks.model import DiffusionModel
from rearview.engine.networks.sampling import noise
from rearview.engine.scheduler import CostTable, Scheduler
from torch import Tensor

from support.frames import content, entering
from support.tiny import SIZE, session

CLOSE = 1e-4
MOVES = 0.05
LATENT = (4, SIZE // 8, SIZE // 8)


def latent_of(
    model: DiffusionModel, span: Span, settings: Settings, frame: Tensor | Mapping[str, Tensor]
) -> Tensor:
    """Of one frame, as a session's first, (1, C, h, w): what a span without decoding leaves."""
    engine = Engine(span, model, Memoryless(1), Scheduler(CostTable(), 4), clock=lambda: 0.0)
    engine.open(session("a", settings, max_steps=4))
    engine.admit(entering("a", 0, frame), 0.0)
    left: list[Any] = []
    while engine.has_work:
        left += engine.step(0.0).emissions
    found = content(left[0])
    assert found is not None
    return found[None]


def hand_noise(monkeypatch: pytest.MonkeyPatch, modules: Sequence[Any], settings: Settings) -> None:
    """Let modules of diffusers' draw what a session's first frame has, step after step."""
    handed = (noise(settings, 0, step, LATENT)[None] for step in range(settings.steps + 1))
    for module in modules:
        monkeypatch.setattr(module, "randn_tensor", lambda *_, **__: next(handed))


def go_by(monkeypatch: pytest.MonkeyPatch, scheduler: Any, timesteps: Sequence[int]) -> None:
    """Let a scheduler of diffusers' take these timesteps, whatever it is asked for."""
    set_timesteps = scheduler.set_timesteps
    monkeypatch.setattr(
        scheduler,
        "set_timesteps",
        lambda steps, device: set_timesteps(timesteps=list(timesteps), device=device),
    )


def noting_latents(left: list[Tensor]) -> Callable[..., dict[str, Tensor]]:
    """A callback that a pipeline calls after each step: notes what the step has left."""

    def note(_: object, step: int, timestep: object, values: dict[str, Tensor]) -> dict[str, Tensor]:
        left.append(values["latents"].clone())
        return values

    return note
