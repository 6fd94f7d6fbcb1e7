"""One call of a UNet: what goes in, what its rows remember, and what comes out.

Whatever runs the network in another way than module by module (a captured graph, a compiled artefact) stands
in for `EagerCall`, and gives what that gives but for rounding.
Shape legend: B samples, C channels, h x w latent size, T tokens of a prompt.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from torch import Tensor

from rearview.engine.memory.protocol import Updates, Views
from rearview.engine.networks.attention.readers import Readers

__all__ = ["EagerCall", "UNetCall", "UNetInputs"]


@dataclass(frozen=True, slots=True, eq=False)
class UNetInputs:
    """What a UNet is given, but for the past: in its type, on its device, in its memory format."""

    latent_BCHW: Tensor
    timestep_B: Tensor
    """int64."""
    prompt_BTC: Tensor
    scale_BC: Tensor | None = None
    """Embedded scales of guidance, for a UNet that is conditioned on them."""
    depth_BCHW: Tensor | None = None
    """Latents of depth, for sessions that have it."""

    @property
    def given(self) -> tuple[bool, bool]:
        """Whether there are scales, and whether there is depth."""
        return self.scale_BC is not None, self.depth_BCHW is not None

    @property
    def tensors(self) -> tuple[Tensor, ...]:
        """Those that are there, in the order of the fields."""
        optional = (self.scale_BC, self.depth_BCHW)
        always = (self.latent_BCHW, self.timestep_B, self.prompt_BTC)
        return (*always, *(tensor for tensor in optional if tensor is not None))

    @classmethod
    def of(cls, given: tuple[bool, bool], tensors: Sequence[Tensor]) -> UNetInputs:
        """The inverse of `given` and `tensors`."""
        rest = iter(tensors[3:])
        scale, depth = (next(rest) if is_there else None for is_there in given)
        return cls(tensors[0], tensors[1], tensors[2], scale, depth)


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
        arguments = readers.arguments
        if inputs.scale_BC is not None:
            arguments["timestep_cond"] = inputs.scale_BC
        if inputs.depth_BCHW is not None:
            arguments["depth"] = inputs.depth_BCHW
        prediction: Tensor = self._unet(
            inputs.latent_BCHW,
            inputs.timestep_B,
            encoder_hidden_states=inputs.prompt_BTC,
            return_dict=False,
            **arguments,
        )[0]
        return prediction, readers.collect()
