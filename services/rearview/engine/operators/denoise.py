"""One denoising step for rows of many sessions, at mixed timesteps, prompts and guidance: one UNet call."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from rearview.engine.conditioning import Conditioning
from rearview.engine.guidance import Anchors, guide, negative_rows, pack, unpack
from rearview.engine.memory.layers import BankLayout
from rearview.engine.memory.protocol import MemoryUpdate, MemoryView
from rearview.engine.rows import Row
from rearview.engine.sampling import Schedule, StepCoefficients, noise

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
        self, payloads: Sequence[Tensor], rows: Sequence[Row], view: MemoryView
    ) -> tuple[list[Tensor], MemoryUpdate]:
        """Take each row one step further.

        `payloads`: per row the encoded frame z (C, h, w) for step 0, else what the step before left.
        Returns per row the noisy latent for the next step, with the anchor of its guidance (2, C, h, w)
        if it has one, or the clean latent after a frame's last step.
        """
        steps = [self.schedule.steps(row.settings)[row.operator.step] for row in rows]
        latents, anchors = unpack(payloads, rows)
        x_BCHW = self._enter(latents, rows)
        clean_BCHW, update = self._predict(x_BCHW, rows, steps, anchors, view)
        guided_BCHW = guide(clean_BCHW, x_BCHW, anchors, rows, steps)
        return self._leave(self.schedule.bound(guided_BCHW, x_BCHW, steps), rows, anchors), update

    def _predict(
        self,
        x_BCHW: Tensor,
        rows: Sequence[Row],
        steps: list[StepCoefficients],
        anchors: Anchors,
        view: MemoryView,
    ) -> tuple[Tensor, MemoryUpdate]:
        """Clean predictions (B, C, h, w). Those under negative prompts ride in the same UNet call, and
        become the anchors of their rows.
        """
        negative = negative_rows(rows)
        embeds = [self.conditioning.embed_frame(row.settings, row.ordinal) for row in rows]
        embeds += [self.conditioning.embed(rows[i].settings.negative_prompt) for i in negative]
        if negative:
            x_BCHW = torch.cat([x_BCHW, x_BCHW[negative]])
            steps = steps + [steps[i] for i in negative]
            view = None if view is None else view.beside(negative)
        arguments: dict[str, Any] = {} if view is None else {"cross_attention_kwargs": {"memory": view}}
        output_BCHW = self.unet(
            x_BCHW.to(self._dtype).contiguous(memory_format=torch.channels_last),
            torch.tensor([step.timestep for step in steps], device=x_BCHW.device),
            encoder_hidden_states=torch.cat(embeds),
            return_dict=False,
            **arguments,
        )[0].to(x_BCHW.dtype)
        clean_BCHW = self.schedule.clean(x_BCHW, output_BCHW, steps)
        anchors.update(zip(negative, clean_BCHW[len(rows) :], strict=True))
        return clean_BCHW[: len(rows)], None if view is None else view.collect()

    def _enter(self, latents: Sequence[Tensor], rows: Sequence[Row]) -> Tensor:
        """Noise the rows that are at step 0: x_0 = alpha_0 z + beta_0 eps_0. Returns (B, C, h, w)."""
        return torch.stack(
            [
                self._renoise(latent, row, 0) if row.operator.step == 0 else latent
                for latent, row in zip(latents, rows, strict=True)
            ]
        )

    def _leave(self, clean_BCHW: Tensor, rows: Sequence[Row], anchors: Anchors) -> list[Tensor]:
        """Noise the rows that have another step before them."""
        return [
            pack(self._renoise(clean, row, row.operator.step + 1), anchors.get(index), row)
            if row.operator.step + 1 < row.settings.steps
            else clean
            for index, (clean, row) in enumerate(zip(clean_BCHW, rows, strict=True))
        ]

    def _renoise(self, clean_CHW: Tensor, row: Row, step: int) -> Tensor:
        to = self.schedule.steps(row.settings)[step]
        epsilon = noise(row.settings, row.ordinal, step, tuple(clean_CHW.shape)).to(clean_CHW)
        return to.alpha * clean_CHW + to.beta * epsilon
