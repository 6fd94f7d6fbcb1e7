"""One call of a UNet: what goes in, what its rows remember, and what comes out.

Whatever runs the network in another way than module by module (a captured graph, a compiled artefact) stands
in for `EagerCall`, and gives what that gives but for rounding.
Shape legend: B samples, C channels, h x w latent size, T tokens of a prompt.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

from torch import Tensor

from rearview.engine.memory.protocol import Updates, Views
from rearview.engine.networks.attention.readers import Readers

__all__ = [
    "DEPTH_LATENT",
    "DOWN_RESIDUALS",
    "MID_RESIDUAL",
    "SCALE",
    "SIZES",
    "TEXT",
    "EagerCall",
    "UNetCall",
    "UNetInputs",
    "arguments_of",
]

SCALE = "timestep_cond"
"""Embedded scales of guidance (B, C), for a UNet that is conditioned on them."""
DEPTH_LATENT = "depth"
"""Latents of depth (B, C, h, w), for sessions that have it."""
DOWN_RESIDUALS = "down_block_additional_residuals"
"""What ControlNets add to the skips, a list of (B, C, h, w)."""
MID_RESIDUAL = "mid_block_additional_residual"
"""The same of the middle, (B, C, h, w)."""
TEXT = "text_embeds"
"""Pooled texts (B, P), for a UNet of Stable Diffusion XL."""
SIZES = "time_ids"
"""Sizes (B, 6), for the same: height and width of the original, top and left of its crop, height and width of
the picture."""
NESTED = {TEXT: "added_cond_kwargs", SIZES: "added_cond_kwargs"}
"""Names that are not arguments of a UNet by themselves, to the argument that holds them."""


@dataclass(frozen=True, slots=True, eq=False)
class UNetInputs:
    """What a UNet is given, but for the past: in its type, on its device, in its memory format."""

    latent_BCHW: Tensor
    timestep_B: Tensor
    """int64."""
    prompt_BTC: Tensor
    more: Mapping[str, Tensor] = field(default_factory=dict)
    """What only some UNets or some calls are given, by the UNet's name for it: a row for each sample.
    Numbered names, `x.0`, `x.1` and so on, are the list x."""

    @property
    def given(self) -> tuple[str, ...]:
        """Names of what is given beside the first three."""
        return tuple(self.more)

    @property
    def tensors(self) -> tuple[Tensor, ...]:
        """All of them: the first three, then the others."""
        return (self.latent_BCHW, self.timestep_B, self.prompt_BTC, *self.more.values())

    @classmethod
    def of(cls, given: Sequence[str], tensors: Sequence[Tensor]) -> UNetInputs:
        """The inverse of `given` and `tensors`."""
        latent_BCHW, timestep_B, prompt_BTC, *more = tensors
        return cls(latent_BCHW, timestep_B, prompt_BTC, dict(zip(given, more, strict=True)))


def arguments_of(more: Mapping[str, Tensor]) -> dict[str, Any]:
    """What a UNet is called with, of `UNetInputs.more`."""
    arguments: dict[str, Any] = {}
    for name, tensor in more.items():
        whole, dot, _ = name.partition(".")
        if dot:
            arguments.setdefault(whole, []).append(tensor)
        elif name in NESTED:
            arguments.setdefault(NESTED[name], {})[name] = tensor
        else:
            arguments[name] = tensor
    return arguments


class UNetCall(Protocol):
    """A prediction (B, C, h, w) in the UNet's type, and what the samples leave. Changes no memory."""

    def __call__(self, inputs: UNetInputs, views: Views) -> tuple[Tensor, Updates]: ...


class EagerCall:
    """The UNet as it is."""

    def __init__(self, unet: Any) -> None:
        self._unet = unet

    def __call__(self, inputs: UNetInputs, views: Views) -> tuple[Tensor, Updates]:
        """See `UNetCall`."""
        readers = Readers(views)
        prediction: Tensor = self._unet(
            inputs.latent_BCHW,
            inputs.timestep_B,
            encoder_hidden_states=inputs.prompt_BTC,
            return_dict=False,
            **readers.arguments,
            **arguments_of(inputs.more),
        )[0]
        return prediction, readers.collect()
