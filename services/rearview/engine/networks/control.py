"""ControlNets in rows: which rows use which, and what their residuals are for the UNet call of all rows.

A ControlNet runs once over the samples that use it, those under negative prompts among them. Its residuals
are summed into tensors for the whole batch, which are zero for samples without any: such a sample is what it
would be in a batch of its like. What embeds a picture runs once a frame and span: the result goes with the
frame from step to step (`HINT`).
Shape legend: B samples, N of them that use a ControlNet, K controls of a frame, h x w latent size.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from rearview.contract.frame import CONTROL, HINT
from rearview.contract.settings import Settings
from rearview.engine.devices import memory_format, upload
from rearview.engine.networks.call import DOWN_RESIDUALS, MID_RESIDUAL, UNetInputs
from rearview.engine.planes import Planes
from rearview.engine.rows import Row

__all__ = ["ControlBranch", "ControlNets", "residual_names"]

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
        self.call: Callable[[Sequence[Tensor]], Sequence[Tensor]] = lambda given: self(*given)
        """Stands between rows and the network, as `Denoiser.call` does."""

    def embed(self, pictures_BHWC: Tensor, dtype: torch.dtype) -> Tensor:
        """Embeddings (B, C, h, w) of pictures (B, H, W, 3) uint8."""
        levels = pictures_BHWC.permute(0, 3, 1, 2).to(torch.promote_types(dtype, torch.float32))
        pixels = (levels / 255.0).to(dtype).contiguous(memory_format=memory_format(levels.device))
        embedded: Tensor = self.embedding(pixels)
        return embedded

    def forward(
        self, latent_NCHW: Tensor, timestep_N: Tensor, prompt_NTC: Tensor, hint_NCHW: Tensor, weight_N: Tensor
    ) -> tuple[Tensor, ...]:
        """The residuals, times `weight_N`."""
        down, middle = self.network(
            latent_NCHW,
            timestep_N,
            encoder_hidden_states=prompt_NTC,
            controlnet_cond=hint_NCHW,
            conditioning_scale=weight_N.view(-1, 1, 1, 1),
            return_dict=False,
        )
        return (*down, middle)


class ControlNets:
    """Those of a deployment, by name. Stateless."""

    def __init__(self, branches: Mapping[str, ControlBranch], dtype: torch.dtype) -> None:
        self.branches, self._dtype = branches, dtype

    def hints(self, samples: Sequence[Planes], rows: Sequence[Row]) -> list[Tensor | None]:
        """Of each sample, (K, C, h, w), in the order of its acting controls; None: it has none. Those that
        lack theirs have their pictures embedded, all of a ControlNet together.
        """
        users: dict[str, list[Tensor]] = {}
        lacking = [
            [] if HINT in planes else [one.name for one in row.settings.acting_controls]
            for planes, row in zip(samples, rows, strict=True)
        ]
        for planes, names in zip(samples, lacking, strict=True):
            for place, name in enumerate(names):
                users.setdefault(name, []).append(planes[CONTROL][place])
        embedded = {
            name: iter(self.branches[name].embed(torch.stack(pictures), self._dtype).unbind(0))
            for name, pictures in users.items()
        }
        return [
            torch.stack([next(embedded[name]) for name in names]) if names else planes.get(HINT)
            for planes, names in zip(samples, lacking, strict=True)
        ]

    def steer(
        self, inputs: UNetInputs, settings: Sequence[Settings], hints: Sequence[Tensor | None]
    ) -> UNetInputs:
        """The call with residuals for samples under these settings, and with these hints; as it is if no
        sample has a control.
        """
        uses: dict[str, list[tuple[int, Tensor, float]]] = {}
        for at, (under, hint_KCHW) in enumerate(zip(settings, hints, strict=True)):
            if hint_KCHW is not None:
                for one, hint_CHW in zip(under.acting_controls, hint_KCHW, strict=True):
                    uses.setdefault(one.name, []).append((at, hint_CHW, one.weight))
        if not uses:
            return inputs
        # By name, since sums depend on their order: alone or in company it is the same.
        found = [self._run(self.branches[name], inputs, uses[name]) for name in sorted(uses)]
        total = found[0]
        for others in found[1:]:
            total = [mine + other for mine, other in zip(total, others, strict=True)]
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
        if len(uses) == samples:
            return branch.call((*first_three, hint_NCHW, weight_N))
        at_N = upload(torch.tensor([at for at, *_ in uses]), latent_BCHW.device)
        chosen = [each.index_select(0, at_N) for each in first_three]
        residuals = branch.call((*chosen, hint_NCHW, weight_N))
        return [each.new_zeros(samples, *each.shape[1:]).index_copy(0, at_N, each) for each in residuals]


def residual_names(number: int) -> tuple[str, ...]:
    """Under which a UNet call is given so many residuals."""
    return (*(f"{DOWN_RESIDUALS}.{at}" for at in range(number - 1)), MID_RESIDUAL)
