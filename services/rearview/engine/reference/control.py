"""ControlNets in their plainest form, for `frame.py`: one frame, one ControlNet after another, in every step.

No batches, tables or hints that are kept. What it shares with `networks/control.py` is the networks.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from rearview.contract.settings import Settings
from rearview.engine.networks.call import DOWN_RESIDUALS, MID_RESIDUAL
from rearview.engine.networks.denoise import Denoiser

__all__ = ["Added", "Shown", "added", "side_by_side", "steered"]

Shown = Mapping[str, Tensor]
"""By name of the control, what it is shown of the frame: (H, W, 3) uint8."""
Added = Mapping[str, Any]
"""What a UNet is called with besides: the residuals. Empty: nothing is added."""


def added(denoiser: Denoiser, settings: Settings, shown: Shown, x: Tensor, at: Tensor, text: Tensor) -> Added:
    """What the frame's controls add to the prediction of x (1, C, h, w), in the type of the networks. `at`:
    its timestep, (1,). One that is shown nothing adds nothing.
    """
    total: list[Tensor] = []
    prompt, more = denoiser.text(text, x)
    for one in [each for each in settings.acting_controls if each.name in shown]:
        branch = denoiser.controls.branches[one.name]
        hint = branch.embed(shown[one.name][None], x.dtype)
        weight = torch.tensor([one.weight]).to(x)
        residuals = branch(x, at, prompt, hint, weight, *(more[name] for name in branch.given))
        total = [a + b for a, b in zip(total, residuals, strict=True)] if total else [*residuals]
    return {DOWN_RESIDUALS: total[:-1], MID_RESIDUAL: total[-1]} if total else {}


def steered(denoiser: Denoiser, settings: Settings, shown: Shown) -> Any:
    """The UNet, each of whose calls has what the frame's controls add to it."""

    def predict(x: Tensor, at: Tensor, *, encoder_hidden_states: Tensor, **more: Any) -> Any:
        text = encoder_hidden_states
        control = added(denoiser, settings, shown, x, at, text)
        return denoiser.unet(x, at, **denoiser.text.arguments(text, x), **more, **control)

    return predict


def side_by_side(each: Sequence[Added]) -> Added:
    """Of several frames in one prediction, those without a control among them."""
    like = next(filter(None, each), None)
    if like is None:
        return {}
    filled = [one or _zeros_like(like) for one in each]
    down = [torch.cat(parts) for parts in zip(*(one[DOWN_RESIDUALS] for one in filled), strict=True)]
    return {DOWN_RESIDUALS: down, MID_RESIDUAL: torch.cat([one[MID_RESIDUAL] for one in filled])}


def _zeros_like(one: Added) -> Added:
    """The same of a frame without controls."""
    return {
        DOWN_RESIDUALS: [torch.zeros_like(each) for each in one[DOWN_RESIDUALS]],
        MID_RESIDUAL: torch.zeros_like(one[MID_RESIDUAL]),
    }
