"""ControlNets in rows: which rows use which, and what their residuals are for the UNet call of all rows.

A ControlNet runs once over the samples that use it, those under negative prompts among them. Its residuals
are summed into tensors for the whole batch, which are zero for samples without any: such a sample is what it
would be in a batch of its like. What embeds a picture runs once a frame and span: the result goes with the
frame from step to step (`HINT`).
A control acts on a frame that has its picture, and on no other.
Shape legend: B samples, N of them that use a ControlNet, h x w latent size.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from rearview.contract.frame import control_plane, hint_plane
from rearview.contract.settings import Settings
from rearview.engine.devices import memory_format, upload
from rearview.engine.networks.call import DOWN_RESIDUALS, MID_RESIDUAL, SIZES, TEXT, UNetInputs, arguments_of
from rearview.engine.planes import Planes
from rearview.engine.rows import Row

__all__ = ["ControlBranch", "ControlNets", "Hints", "residual_names"]

Hints = Mapping[str, Tensor]
"""Of one sample, by name of the control: what its ControlNet has made of the picture, (C, h, w)."""

Residuals = Sequence[Tensor]
"""Of the skips from the first on, then of the middle: (B, C, h, w) each."""


class ControlBranch(nn.Module):
    """A ControlNet of diffusers' as a function of tensors, without what embeds its picture."""

    def __init__(self, network: Any) -> None:
        """Takes the embedding out of `network`, which is then given what it makes."""
        super().__init__()
        self.embedding = network.controlnet_cond_embedding
        network.controlnet_cond_embedding = nn.Identity()
        self.network = network
        pools = getattr(network.config, "addition_embed_type", None) == "text_time"
        self.given: tuple[str, ...] = (TEXT, SIZES) if pools else ()
        """What else it is given of the UNet's further inputs, by their names: of Stable Diffusion XL."""
        self.call: Callable[[Sequence[Tensor]], Sequence[Tensor]] = lambda given: self(*given)
        """Stands between rows and the network, as `Denoiser.call` does."""

    @property
    def num_bytes(self) -> int:
        """Of its weights."""
        return sum(each.nbytes for each in self.parameters())

    def embed(self, pictures_BHWC: Tensor, dtype: torch.dtype) -> Tensor:
        """Embeddings (B, C, h, w) of pictures (B, H, W, 3) uint8."""
        levels = pictures_BHWC.permute(0, 3, 1, 2).to(torch.promote_types(dtype, torch.float32))
        pixels = (levels / 255.0).to(dtype).contiguous(memory_format=memory_format(levels.device))
        embedded: Tensor = self.embedding(pixels)
        return embedded

    def forward(
        self,
        latent_NCHW: Tensor,
        timestep_N: Tensor,
        prompt_NTC: Tensor,
        hint_NCHW: Tensor,
        weight_N: Tensor,
        *given: Tensor,
    ) -> tuple[Tensor, ...]:
        """The residuals, times `weight_N`. `given`: in the order of `self.given`."""
        down, middle = self.network(
            latent_NCHW,
            timestep_N,
            encoder_hidden_states=prompt_NTC,
            controlnet_cond=hint_NCHW,
            conditioning_scale=weight_N.view(-1, 1, 1, 1),
            return_dict=False,
            **arguments_of(dict(zip(self.given, given, strict=True))),
        )
        return (*down, middle)


class ControlNets:
    """Those of a deployment, by name. Stateless."""

    def __init__(self, branches: Mapping[str, ControlBranch], dtype: torch.dtype) -> None:
        self.branches, self._dtype = branches, dtype

    def hints(self, samples: Sequence[Planes], rows: Sequence[Row]) -> list[Hints]:
        """Of each sample, those of its acting controls that have a picture. Those that lack theirs have their
        pictures embedded, all of a ControlNet together.
        """
        found: list[dict[str, Tensor]] = []
        lacking: dict[str, list[int]] = {}
        for at, (planes, row) in enumerate(zip(samples, rows, strict=True)):
            names = [one.name for one in row.settings.acting_controls if control_plane(one.name) in planes]
            found.append({name: planes[hint_plane(name)] for name in names if hint_plane(name) in planes})
            for name in names:
                if name not in found[at]:
                    lacking.setdefault(name, []).append(at)
        for name, users in lacking.items():
            pictures = torch.stack([samples[at][control_plane(name)] for at in users])
            for at, hint_CHW in zip(users, self.branches[name].embed(pictures, self._dtype), strict=True):
                found[at][name] = hint_CHW
        return list(found)

    def steer(self, inputs: UNetInputs, settings: Sequence[Settings], hints: Sequence[Hints]) -> UNetInputs:
        """The call with residuals for samples under these settings, and with these hints; as it is if no
        sample has a control.
        """
        uses: dict[str, list[tuple[int, Tensor, float]]] = {}
        for at, (under, of_it) in enumerate(zip(settings, hints, strict=True)):
            for one in under.acting_controls if of_it else ():
                if one.name in of_it:
                    uses.setdefault(one.name, []).append((at, of_it[one.name], one.weight))
        if not uses:
            return inputs
        # By name, since sums depend on their order: alone or in company it is the same.
        first, *others = sorted(uses)
        total = self._run(self.branches[first], inputs, uses[first])
        for name in others:  # One after another, so that residuals of two are there at most.
            found = self._run(self.branches[name], inputs, uses[name])
            total = [mine + other for mine, other in zip(total, found, strict=True)]
        return replace(
            inputs, more={**inputs.more, **dict(zip(residual_names(len(total)), total, strict=True))}
        )

    def _run(
        self, branch: ControlBranch, inputs: UNetInputs, uses: Sequence[tuple[int, Tensor, float]]
    ) -> Residuals:
        """One ControlNet over the samples that use it: its residuals for all samples."""
        latent_BCHW, samples = inputs.latent_BCHW, len(inputs.latent_BCHW)
        weight_N = upload(torch.tensor([weight for *_, weight in uses]), latent_BCHW.device).to(self._dtype)
        hint_NCHW = torch.stack([hint for _, hint, _ in uses])
        first_three = (latent_BCHW, inputs.timestep_B, inputs.prompt_BTC)
        given = [inputs.more[name] for name in branch.given]
        if len(uses) == samples:
            return branch.call((*first_three, hint_NCHW, weight_N, *given))
        at_N = upload(torch.tensor([at for at, *_ in uses]), latent_BCHW.device)
        chosen = [each.index_select(0, at_N) for each in first_three]
        given = [each.index_select(0, at_N) for each in given]
        residuals = branch.call((*chosen, hint_NCHW, weight_N, *given))
        return [each.new_zeros(samples, *each.shape[1:]).index_copy(0, at_N, each) for each in residuals]


def residual_names(number: int) -> tuple[str, ...]:
    """Under which a UNet call is given so many residuals."""
    return (*(f"{DOWN_RESIDUALS}.{at}" for at in range(number - 1)), MID_RESIDUAL)
