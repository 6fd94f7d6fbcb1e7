"""One denoising step for rows of many sessions, at mixed timesteps, prompts and guidance: one UNet call.

A window row is as many samples as it has frames, each with its own noise, prompt and guidance; only the
memory's view knows which of them see each other.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from rearview.contract.blending import mix_at
from rearview.contract.controls import check_controls
from rearview.contract.frame import (
    ANCHOR,
    CONTROL,
    DEPTH,
    LATENT,
    control_plane,
    hint_plane,
    is_for_controls,
)
from rearview.contract.settings import AdapterMix, Settings, WeightedPrompt, check_guidance
from rearview.engine.devices import memory_format, upload
from rearview.engine.memory.bank.layers import BankLayout
from rearview.engine.memory.protocol import Updates, Views
from rearview.engine.networks.call import DEPTH_LATENT, SCALE, EagerCall, UNetCall, UNetInputs
from rearview.engine.networks.conditioning import Conditioning
from rearview.engine.networks.control import ControlNets, Hints
from rearview.engine.networks.guidance import Anchors, anchor_of, anchored, guide, negative_rows
from rearview.engine.networks.noise import NoiseStore
from rearview.engine.networks.pooled import PlainText
from rearview.engine.networks.prompts import PromptTable, Worded
from rearview.engine.networks.reference_image import NoReferences
from rearview.engine.networks.sampling import Schedule, StepColumns
from rearview.engine.networks.scale_embedding import embed_scales
from rearview.engine.rows import Row

__all__ = ["Denoiser"]


class Denoiser:
    """A UNet with its schedule, prompts and noise. Memory is an argument and a return value."""

    def __init__(
        self,
        unet: Any,
        schedule: Schedule,
        conditioning: Conditioning,
        dtype: torch.dtype,
        bank_layout: BankLayout | None = None,
        noise: NoiseStore | None = None,
        controls: ControlNets | None = None,
        text: PlainText | None = None,
        references: NoReferences | None = None,
    ) -> None:
        """`bank_layout`: what `install_processors(unet)` returned; None: the UNet takes no feature bank.
        `noise`, `controls`: those of all denoisers over this UNet, whatever their adapters; None: noise of
        its own, no controls. `text`: what the UNet is given of embeddings; None: they are its prompts.
        `references`: the adapter for reference images; None: there is none.
        """
        self.unet = unet
        self.call: UNetCall = EagerCall(unet)
        """Stands between rows and the UNet."""
        self.bank_layout = bank_layout
        self.schedule = schedule
        self.conditioning = conditioning
        """Of the plain path."""
        self.prompts = PromptTable(conditioning)
        self.controls = controls or ControlNets({}, dtype)
        self.references = references or NoReferences()
        self.text = text or PlainText()
        """Embeddings to what the UNet is given of them."""
        self._dtype, self._noise = dtype, noise or NoiseStore()
        config = getattr(unet, "config", None)
        self._scale_channels: int | None = getattr(config, "time_cond_proj_dim", None)

    def __call__(
        self, planes: Sequence[Mapping[str, Tensor]], rows: Sequence[Row], views: Views
    ) -> tuple[list[Mapping[str, Tensor]], Updates]:
        """Take each row one step further.

        `planes`: per sample the encoded frame for step 0, with its depth if the session has depth, and with
        what its controls are shown; else what the step before left. Returns per sample the noisy latent for
        the next step, with its depth, control, and the anchor of its guidance if it has those, or the clean
        latent alone after a frame's last step.
        """
        samples = [sample for row in rows for sample in row.samples()]
        has_depth = self.has_depth and rows[0].frame.spec.cache is not None
        for each, row in zip(planes, samples, strict=True):
            _check_planes(each, row, has_depth=has_depth)
        entering = [anchor_of(each, row) for each, row in zip(planes, samples, strict=True)]
        anchors = {i: anchor for i, anchor in enumerate(entering) if anchor is not None}
        latent_BCHW = torch.stack([each[LATENT] for each in planes])
        negative = negative_rows(samples)
        plan = self._plan(samples, negative, latent_BCHW)
        x_BCHW = self._enter(latent_BCHW, samples, plan)
        depths = [each[DEPTH] for each in planes] if has_depth else []
        depth_BCHW = torch.stack(depths) if depths else None
        hints = self.controls.hints(planes, samples)
        clean_BCHW, updates = self._predict(
            x_BCHW, depth_BCHW, samples, negative, plan, anchors, hints, views
        )
        guided_BCHW = guide(clean_BCHW, x_BCHW, anchors, samples, plan.at.alpha_B111)
        bounded_BCHW = self.schedule.bound(guided_BCHW, x_BCHW, plan.at)
        following_BCHW = self._follow(bounded_BCHW, x_BCHW, samples, plan)
        stays = [_staying(each, hint) for each, hint in zip(planes, hints, strict=True)]
        return _left(bounded_BCHW, following_BCHW, stays, samples, anchors), updates

    @property
    def has_depth(self) -> bool:
        """Whether the UNet is conditioned on depth, in sessions with a temporal cache."""
        return bool(getattr(self.unet, "has_depth", False))

    def prepare(self, settings: Settings) -> None:
        """Encode the prompts and the reference of new settings ahead. Raises InvalidRequest for guidance that
        cannot be and for controls that are not there.
        """
        check_controls(settings.controls, self.controls.branches)
        check_guidance(settings, embeds_scale=self._scale_channels is not None)
        self.prompts.prepare(settings, self._in_text(settings))
        self.references.prepare(settings)

    def embedded_scales(self, scales: Sequence[float]) -> dict[str, Tensor]:
        """The UNet's further input if it is conditioned on the scale of guidance: one scale per row."""
        if self._scale_channels is None:
            return {}
        return {SCALE: embed_scales(scales, self._scale_channels).to(self.unet.device, self._dtype)}

    def adapter_rows(self, settings: Sequence[Settings]) -> Mapping[str, Tensor]:
        """The UNet's further inputs if some of these samples are under stacked adapter sets."""
        return self.conditioning.stacks.inputs([each.acting_adapters for each in settings])

    def _in_text(self, settings: Settings) -> AdapterMix:
        return self.conditioning.stacks.in_text(settings.acting_adapters)

    def _predict(
        self,
        x_BCHW: Tensor,
        depth_BCHW: Tensor | None,
        rows: Sequence[Row],
        negative: Sequence[int],
        plan: _Plan,
        anchors: Anchors,
        hints: Sequence[Hints],
        views: Views,
    ) -> tuple[Tensor, Updates]:
        """Clean predictions (B, C, h, w). Those under negative prompts, of the rows `negative`, ride in the
        same UNet call, behind the others, and become the anchors of their rows.
        """
        if negative:
            x_BCHW = torch.cat([x_BCHW, x_BCHW[negative]])
            depth_BCHW = None if depth_BCHW is None else torch.cat([depth_BCHW, depth_BCHW[negative]])
            views = views.beside(negative)
        prompt_BTC, more = self.text(self.prompts.read(plan.place_B), x_BCHW)
        more |= self.embedded_scales([row.settings.guidance_scale for row in rows])
        under = [row.settings for row in (*rows, *(rows[i] for i in negative))]
        more |= self.adapter_rows(under)
        more |= self.references.inputs(under, [False] * len(rows) + [True] * len(negative), x_BCHW)
        if depth_BCHW is not None:
            more[DEPTH_LATENT] = depth_BCHW.to(self._dtype)
        inputs = UNetInputs(
            x_BCHW.to(self._dtype).contiguous(memory_format=memory_format(x_BCHW.device)),
            plan.called.timestep_B,
            prompt_BTC,
            more,
        )
        doubled = [*range(len(rows)), *negative]
        inputs = self.controls.steer(inputs, under, [hints[i] for i in doubled])
        output_BCHW, updates = self.call(inputs, views)
        clean_BCHW = self.schedule.clean(x_BCHW, output_BCHW.to(x_BCHW.dtype), plan.called)
        if negative:
            anchors.update(zip(negative, clean_BCHW[len(rows) :], strict=True))
            clean_BCHW, updates = clean_BCHW[: len(rows)], updates.first(len(rows))
        return clean_BCHW, updates

    def _plan(self, rows: Sequence[Row], negative: Sequence[int], like_BCHW: Tensor) -> _Plan:
        """What differs from row to row as indices into tables, in one upload. `negative`: rows that also
        ride as a further sample, behind the others.
        """
        asked = [Worded(mix_at(row.settings, row.ordinal), self._in_text(row.settings)) for row in rows]
        away = (rows[i].settings for i in negative)
        asked += [Worded(_negative(settings), self._in_text(settings)) for settings in away]
        places = self.prompts.places(asked)
        at: list[int] = []  # Timesteps, as are those of `to`.
        to: list[int | None] = []
        for row in rows:
            visited, step = self.schedule.timesteps(row.settings), row.operator.step
            at.append(visited[step])
            to.append(visited[step + 1] if step + 1 < row.settings.steps else None)
        at += [at[i] for i in negative]
        indices = upload(torch.tensor([*places, *at, *(each or 0 for each in to)]), like_BCHW.device)
        place_B, timesteps = indices.split([len(at), len(at) + len(to)])
        called, following = self.schedule.columns(timesteps, like_BCHW.dtype, [len(at), len(to)])
        return _Plan(place_B, called, called.first(len(to)) if negative else called, following, to)

    def _enter(self, latent_BCHW: Tensor, rows: Sequence[Row], plan: _Plan) -> Tensor:
        """Noise the samples that are at step 0: x_0 = alpha_0 z + beta_0 eps_0. Returns (B, C, h, w)."""
        begins = [row.operator.step == 0 for row in rows]
        if not any(begins):
            return latent_BCHW
        noise_BCHW = self._noise.rows(rows, [0 if begun else None for begun in begins], latent_BCHW)
        noisy_BCHW = plan.at.alpha_B111 * latent_BCHW + plan.at.beta_B111 * noise_BCHW
        if all(begins):
            return noisy_BCHW
        begins_B111 = upload(torch.tensor(begins), latent_BCHW.device).view(-1, 1, 1, 1)
        return torch.where(begins_B111, noisy_BCHW, latent_BCHW)

    def _follow(self, clean_BCHW: Tensor, x_BCHW: Tensor, rows: Sequence[Row], plan: _Plan) -> Tensor | None:
        """What enters the next steps, (B, C, h, w), of no meaning for a sample that has none before it.
        None: no sample has.
        """
        if all(each is None for each in plan.following):
            return None
        drawn: list[int | None] = []
        for row, timestep in zip(rows, plan.following, strict=True):
            step = row.operator.step + 1
            draws = timestep is not None and self.schedule.draws(row.settings, step)
            drawn.append(step if draws else None)
        is_drawn = any(step is not None for step in drawn)
        noise_BCHW = self._noise.rows(rows, drawn, x_BCHW) if is_drawn else None
        return self.schedule.noisy_rows(clean_BCHW, x_BCHW, plan.at, plan.to, noise_BCHW)


@dataclass(frozen=True, slots=True, eq=False)
class _Plan:
    """What a forward's samples read from tables."""

    place_B: Tensor
    """Of its prompt, for every sample of the UNet call."""
    called: StepColumns
    """The constants of the steps of all these."""
    at: StepColumns
    """Of those that are no negative ones."""
    to: StepColumns
    """Of the steps that come next for them."""
    following: Sequence[int | None]
    """The timesteps of those; None after the last, where `to` has whatever."""


def _negative(settings: Settings) -> tuple[WeightedPrompt, ...]:
    return (WeightedPrompt(settings.negative_prompt, 1.0),)


def _is_last(row: Row) -> bool:
    return row.operator.step + 1 >= row.settings.steps


def _left(
    clean_BCHW: Tensor,
    following_BCHW: Tensor | None,
    stays: Sequence[Mapping[str, Tensor]],
    rows: Sequence[Row],
    anchors: Anchors,
) -> list[Mapping[str, Tensor]]:
    """What each sample carries on. `stays`: what of it is the same in every step."""
    clean = clean_BCHW.unbind(0)
    following = clean if following_BCHW is None else following_BCHW.unbind(0)
    outputs: list[Mapping[str, Tensor]] = []
    for index, row in enumerate(rows):
        if _is_last(row):
            outputs.append({LATENT: clean[index]})
            continue
        planes = {LATENT: following[index], **stays[index]}
        if anchored(row.settings):
            planes[ANCHOR] = anchors[index]
        outputs.append(planes)
    return outputs


def _staying(planes: Mapping[str, Tensor], hints: Hints) -> Mapping[str, Tensor]:
    found = {name: each for name, each in planes.items() if name == DEPTH or name.startswith(CONTROL)}
    return {**found, **{hint_plane(name): hint for name, hint in hints.items()}} if hints else found


def _check_planes(planes: Mapping[str, Tensor], row: Row, *, has_depth: bool) -> None:
    has_anchor = row.operator.step > 0 and anchored(row.settings)
    named = {LATENT: True, DEPTH: has_depth, ANCHOR: has_anchor}
    expected = {name for name, is_there in named.items() if is_there}
    others = {name for name in planes if not is_for_controls(name)}
    assert others == expected, f"step {row.operator.step} got {sorted(planes)}"
    shown = {name for name in planes if name.startswith(CONTROL)}
    acting = {control_plane(one.name) for one in row.settings.acting_controls}
    assert shown <= acting, f"step {row.operator.step} got {sorted(planes)}"
