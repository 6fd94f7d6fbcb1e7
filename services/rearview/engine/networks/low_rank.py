"""Adapter sets in rows: each sample of a forward has the sets of its session, at weights of its own.

For every layer that some set changes, the low-rank factors of all sets lie in one stack, behind those of no
set, which are zero. A network with stacks is called with the places of each sample's sets and their weights,
and its layers add what those make of their input. So sets need not agree in a forward, a weight may change
with every frame, and a sample without a set gets what it gets without stacks, to the bit. The price is two
small products more for each layer. What surprises: a call leaves its choice with the network until the next.
Shape legend: B samples, K sets of a sample at most, A sets and none, N positions, R rank, I in, O out.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from rearview.contract.settings import MAX_ADAPTERS, AdapterMix
from rearview.engine.devices import upload

__all__ = ["ADAPTERS", "ADAPTER_WEIGHTS", "AdapterStacks", "Choice", "LowRankStack", "take_choices"]

ADAPTERS = "adapters"
"""Places in the stacks (B, K), int64, of a network that has some: 0 for none."""
ADAPTER_WEIGHTS = "adapter_weights"
"""Of those (B, K), in the network's type."""


@dataclass(slots=True, eq=False)
class Choice:
    """What samples of the running forward have of the stacks; nothing by default."""

    place_BK: Tensor | None = None
    weight_BK: Tensor | None = None


class LowRankStack(nn.Module):
    """What the sets add to one layer, a `Linear` or a `Conv2d` without groups."""

    down_ARI: Tensor
    """For a convolution (A, R, I times kernel), since other numbers of dimensions have no channels last."""
    up_AOR: Tensor

    def __init__(self, layer: nn.Module, down_ARI: Tensor, up_AOR: Tensor, choice: Choice) -> None:
        """`choice`: that of the layer's network."""
        super().__init__()
        self.register_buffer("down_ARI", down_ARI, persistent=False)
        self.register_buffer("up_AOR", up_AOR, persistent=False)
        self._choice = choice
        self._conv: dict[str, Any] | None = None
        self._filter: tuple[int, ...] = ()
        if isinstance(layer, nn.Conv2d):
            names = ("stride", "padding", "dilation")
            self._conv = {name: getattr(layer, name) for name in names}
            self._filter = tuple(layer.weight.shape[1:])

    def forward(self, x: Tensor, output: Tensor) -> Tensor:
        """The layer's `output` for `x` with what each sample's sets add."""
        places_BK, weights_BK = self._choice.place_BK, self._choice.weight_BK
        if places_BK is None or weights_BK is None:
            return output
        assert len(places_BK) == len(x), f"{len(x)} samples have a choice for {len(places_BK)}"
        # One after the other, so that a sample's sum does not depend on how many sets others have.
        for place_B, weight_B in zip(places_BK.unbind(1), weights_BK.unbind(1), strict=True):
            down_BRI = self.down_ARI.index_select(0, place_B)
            up_BRO = self.up_AOR.index_select(0, place_B).transpose(1, 2)
            low_BNR = self._low(x, down_BRI) * weight_B.view(-1, 1, 1)
            if self._conv is None:
                flat_BNO = output.reshape(len(x), -1, output.shape[-1])
                output = torch.baddbmm(flat_BNO, low_BNR, up_BRO).view(output.shape)
            else:
                added_BON = torch.bmm(low_BNR, up_BRO).transpose(1, 2)
                output = output + added_BON.reshape(output.shape)
        return output

    def _low(self, x: Tensor, down_BRI: Tensor) -> Tensor:
        """(B, N, R)"""
        if self._conv is None:
            return torch.bmm(x.reshape(len(x), -1, x.shape[-1]), down_BRI.transpose(1, 2))
        samples, rank = down_BRI.shape[:2]
        together = x.reshape(1, -1, *x.shape[2:])
        filters = down_BRI.reshape(samples * rank, *self._filter)
        low = F.conv2d(together, filters, groups=samples, **self._conv)
        return low.view(samples, rank, -1).transpose(1, 2)


def take_choices(network: nn.Module, choice: Choice) -> None:
    """Let a network whose layers have stacks be called with `ADAPTERS` and `ADAPTER_WEIGHTS`, or without.
    Once: of two choices only one would be told.
    """
    assert not hasattr(network, "adapter_choice"), "the network has stacks already"
    network.adapter_choice = choice  # type: ignore[assignment]
    network.register_forward_pre_hook(_choose, with_kwargs=True)


def _choose(network: Any, args: Any, arguments: dict[str, Any]) -> tuple[Any, dict[str, Any]]:
    choice = network.adapter_choice
    choice.place_BK = arguments.pop(ADAPTERS, None)
    choice.weight_BK = arguments.pop(ADAPTER_WEIGHTS, None)
    return args, arguments


class AdapterStacks:
    """The names of the sets in the stacks of a UNet and its text encoder."""

    def __init__(
        self,
        names: Sequence[str] = (),
        in_text: Collection[str] = (),
        device: torch.device | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        """`names`: in the order of the stacks, where there are any. `in_text`: those that change the text
        encoder too.
        """
        self._places = {name: place for place, name in enumerate(names, 1)}
        self._in_text, self._device, self._dtype = frozenset(in_text), device, dtype

    @property
    def names(self) -> Collection[str]:
        """Of the sets."""
        return self._places.keys()

    def inputs(self, mixes: Sequence[AdapterMix]) -> Mapping[str, Tensor]:
        """What a network with these stacks is called with beside its inputs, for samples under these mixes.
        Nothing if none of them has a stacked set.
        """
        mixes = [tuple(one for one in mix if one.adapters in self._places) for mix in mixes]
        most = max(map(len, mixes), default=0)
        if not most:
            return {}
        most = 1 if most == 1 else MAX_ADAPTERS  # Of two shapes, not of four: each has graphs of its own.
        places = [[self._places[one.adapters] for one in mix] + [0] * (most - len(mix)) for mix in mixes]
        weights = [[one.weight for one in mix] + [0.0] * (most - len(mix)) for mix in mixes]
        assert self._device is not None, "there are no stacks"
        return {
            ADAPTERS: upload(torch.tensor(places), self._device),
            ADAPTER_WEIGHTS: upload(torch.tensor(weights, dtype=self._dtype), self._device),
        }

    def in_text(self, mix: AdapterMix) -> AdapterMix:
        """What of a mix changes the text encoder."""
        return tuple(one for one in mix if one.adapters in self._in_text)
