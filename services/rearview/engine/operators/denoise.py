"""One denoising step for rows of many sessions, at mixed timesteps and prompts, in one UNet call."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from rearview.engine.conditioning import Conditioning
from rearview.engine.memory.layers import BankLayout
from rearview.engine.memory.protocol import MemoryUpdate, MemoryView
from rearview.engine.rows import Row
from rearview.engine.sampling import Schedule, noise

__all__ = ["Denoiser"]


class Denoiser:
    """A UNet with its schedule and prompts. Stateless: memory is an argument and a return value."""

    def __init__(
        self,
        unet: Any,
        schedule: Schedule,
        conditioning: Conditioning,
        dtype: torch.dtype,
        bank_layout: BankLayout | None = None,
    ) -> None:
        """`bank_layout`: what `install_processors(unet)` returned; None: the UNet takes no memory."""
        self.unet = unet
        self.bank_layout = bank_layout
        self.schedule = schedule
        self.conditioning = conditioning
        self._dtype = dtype

    def __call__(
        self, latents_BCHW: Tensor, rows: Sequence[Row], view: MemoryView
    ) -> tuple[Tensor, MemoryUpdate]:
        """Take each row one step further.

        `latents_BCHW`: the encoded frame z for step 0, else the noisy latent that the step before left.
        Returns the noisy latent for the next step, or the clean one after a frame's last step.
        """
        steps = [self.schedule.steps(row.settings)[row.operator.step] for row in rows]
        x_BCHW = self._enter(latents_BCHW, rows)
        embeds_BLD = torch.cat([self.conditioning.embed(row.settings.prompt) for row in rows])
        timesteps_B = torch.tensor([step.timestep for step in steps], device=x_BCHW.device)
        arguments: dict[str, Any] = {} if view is None else {"cross_attention_kwargs": {"memory": view}}
        output_BCHW = self.unet(
            x_BCHW.to(self._dtype).contiguous(memory_format=torch.channels_last),
            timesteps_B,
            encoder_hidden_states=embeds_BLD,
            return_dict=False,
            **arguments,
        )[0].to(x_BCHW.dtype)
        clean_BCHW = self.schedule.predict(x_BCHW, output_BCHW, steps)
        return self._leave(clean_BCHW, rows), None if view is None else view.collect()

    def _enter(self, latents_BCHW: Tensor, rows: Sequence[Row]) -> Tensor:
        """Noise the rows that are at step 0: x_0 = alpha_0 z + beta_0 eps_0."""
        return torch.stack(
            [
                self._renoise(latent, row, 0) if row.operator.step == 0 else latent
                for latent, row in zip(latents_BCHW, rows, strict=True)
            ]
        )

    def _leave(self, clean_BCHW: Tensor, rows: Sequence[Row]) -> Tensor:
        """Noise the rows that have another step before them."""
        return torch.stack(
            [
                self._renoise(clean, row, row.operator.step + 1)
                if row.operator.step + 1 < row.settings.steps
                else clean
                for clean, row in zip(clean_BCHW, rows, strict=True)
            ]
        )

    def _renoise(self, clean_CHW: Tensor, row: Row, step: int) -> Tensor:
        to = self.schedule.steps(row.settings)[step]
        epsilon = noise(row.settings, row.ordinal, step, tuple(clean_CHW.shape)).to(clean_CHW)
        return to.alpha * clean_CHW + to.beta * epsilon
