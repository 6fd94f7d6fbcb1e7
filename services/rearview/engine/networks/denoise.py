"""One denoising step for rows of many sessions, at mixed timesteps, prompts and guidance: one UNet call.

A window row is as many samples as it has frames, each with its own noise, prompt and guidance; only the
memory's view knows which of them see each other.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from rearview.contract.frame import ANCHOR, DEPTH, LATENT
from rearview.contract.settings import Settings, check_guidance
from rearview.engine.devices import memory_format
from rearview.engine.memory.bank.layers import BankLayout
from rearview.engine.memory.protocol import Updates, Views
from rearview.engine.networks.call import EagerCall, UNetCall, UNetInputs
from rearview.engine.networks.conditioning import Conditioning
from rearview.engine.networks.guidance import Anchors, anchor_of, anchored, guide, negative_rows
from rearview.engine.networks.sampling import Schedule, StepCoefficients
from rearview.engine.networks.scale_embedding import embed_scales
from rearview.engine.rows import Row

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
        """`bank_layout`: what `install_processors(unet)` returned; None: the UNet takes no feature bank."""
        self.unet = unet
        self.call: UNetCall = EagerCall(unet)
        """Stands between rows and the UNet."""
        self.bank_layout = bank_layout
        self.schedule = schedule
        self.conditioning = conditioning
        self._dtype = dtype
        config = getattr(unet, "config", None)
        self._scale_channels: int | None = getattr(config, "time_cond_proj_dim", None)

    def __call__(
        self, planes: Sequence[Mapping[str, Tensor]], rows: Sequence[Row], views: Views
    ) -> tuple[list[Mapping[str, Tensor]], Updates]:
        """Take each row one step further.

        `planes`: per sample the encoded frame for step 0, with its depth if the session has depth; else
        what the step before left. Returns per sample the noisy latent for the next step, with its depth and
        the anchor of its guidance if it has those, or the clean latent alone after a frame's last step.
        """
        samples = [sample for row in rows for sample in row.samples()]
        steps = [self.schedule.steps(sample.settings)[sample.operator.step] for sample in samples]
        has_depth = self.has_depth and rows[0].frame.spec.cache is not None
        for each, row in zip(planes, samples, strict=True):
            _check_planes(each, row, has_depth=has_depth)
        entering = [anchor_of(each, row) for each, row in zip(planes, samples, strict=True)]
        anchors = {i: anchor for i, anchor in enumerate(entering) if anchor is not None}
        x_BCHW = self._enter(planes, samples)
        depths = [each[DEPTH] for each in planes] if has_depth else []
        depth_BCHW = torch.stack(depths) if depths else None
        clean_BCHW, updates = self._predict(x_BCHW, depth_BCHW, samples, steps, anchors, views)
        guided_BCHW = guide(clean_BCHW, x_BCHW, anchors, samples, steps)
        bounded_BCHW = self.schedule.bound(guided_BCHW, x_BCHW, steps)
        return self._leave(bounded_BCHW, x_BCHW, depths, samples, anchors), updates

    @property
    def has_depth(self) -> bool:
        """Whether the UNet is conditioned on depth, in sessions with a temporal cache."""
        return bool(getattr(self.unet, "has_depth", False))

    def prepare(self, settings: Settings) -> None:
        """Encode the prompts of new settings ahead. Raises InvalidRequest for guidance that cannot be."""
        check_guidance(settings, embeds_scale=self._scale_channels is not None)
        self.conditioning.prepare(settings)

    def embedded_scales(self, scales: Sequence[float]) -> dict[str, Tensor]:
        """The UNet's further argument if it is conditioned on the scale of guidance: one scale per row."""
        if self._scale_channels is None:
            return {}
        return {"timestep_cond": embed_scales(scales, self._scale_channels).to(self.unet.device, self._dtype)}

    def _predict(
        self,
        x_BCHW: Tensor,
        depth_BCHW: Tensor | None,
        rows: Sequence[Row],
        steps: list[StepCoefficients],
        anchors: Anchors,
        views: Views,
    ) -> tuple[Tensor, Updates]:
        """Clean predictions (B, C, h, w). Those under negative prompts ride in the same UNet call, and
        become the anchors of their rows.
        """
        negative = negative_rows(rows)
        embeds = [self.conditioning.embed_frame(row.settings, row.ordinal) for row in rows]
        embeds += [self.conditioning.embed(rows[i].settings.negative_prompt) for i in negative]
        if negative:
            x_BCHW = torch.cat([x_BCHW, x_BCHW[negative]])
            steps = steps + [steps[i] for i in negative]
            depth_BCHW = None if depth_BCHW is None else torch.cat([depth_BCHW, depth_BCHW[negative]])
            views = views.beside(negative)
        inputs = UNetInputs(
            x_BCHW.to(self._dtype).contiguous(memory_format=memory_format(x_BCHW.device)),
            torch.tensor([step.timestep for step in steps], device=x_BCHW.device),
            torch.cat(embeds),
            self.embedded_scales([row.settings.guidance_scale for row in rows]).get("timestep_cond"),
            None if depth_BCHW is None else depth_BCHW.to(self._dtype),
        )
        output_BCHW, updates = self.call(inputs, views)
        clean_BCHW = self.schedule.clean(x_BCHW, output_BCHW.to(x_BCHW.dtype), steps)
        anchors.update(zip(negative, clean_BCHW[len(rows) :], strict=True))
        return clean_BCHW[: len(rows)], updates

    def _enter(self, planes: Sequence[Mapping[str, Tensor]], rows: Sequence[Row]) -> Tensor:
        """Noise the samples that are at step 0: x_0 = alpha_0 z + beta_0 eps_0. Returns (B, C, h, w)."""
        return torch.stack(
            [
                self.schedule.noisy(each[LATENT], each[LATENT], row.settings, row.ordinal, 0)
                if row.operator.step == 0
                else each[LATENT]
                for each, row in zip(planes, rows, strict=True)
            ]
        )

    def _leave(
        self,
        clean_BCHW: Tensor,
        x_BCHW: Tensor,
        depths: Sequence[Tensor],
        rows: Sequence[Row],
        anchors: Anchors,
    ) -> list[Mapping[str, Tensor]]:
        """Noise the samples that have another step before them. `depths`: of all samples, or of none."""
        outputs: list[Mapping[str, Tensor]] = []
        for index, (latent, row) in enumerate(zip(clean_BCHW, rows, strict=True)):
            if row.operator.step + 1 >= row.settings.steps:
                outputs.append({LATENT: latent})
                continue
            following = self.schedule.noisy(
                latent, x_BCHW[index], row.settings, row.ordinal, row.operator.step + 1
            )
            planes = {LATENT: following}
            if depths:
                planes[DEPTH] = depths[index]
            if anchored(row.settings):
                planes[ANCHOR] = anchors[index]
            outputs.append(planes)
        return outputs


def _check_planes(planes: Mapping[str, Tensor], row: Row, *, has_depth: bool) -> None:
    has_anchor = row.operator.step > 0 and anchored(row.settings)
    expected = {LATENT, *([DEPTH] if has_depth else []), *([ANCHOR] if has_anchor else [])}
    assert planes.keys() == expected, f"step {row.operator.step} got {sorted(planes)}"
