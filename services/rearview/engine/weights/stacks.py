"""Low-rank factors of all adapter sets, one behind the other, in the layers that they change."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn import Module

from rearview.engine.networks.low_rank import AdapterStacks, Choice, LowRankStack
from rearview.engine.weights.adapters import Change, Layer, Layers, changes_of, weighted
from rearview.engine.weights.formats import LoraFile

__all__ = ["stack_adapters", "stack_layer"]


@torch.no_grad()
def stack_adapters(
    unet: Module, text_encoders: Sequence[Module], sets: Mapping[str, Sequence[LoraFile]]
) -> tuple[AdapterStacks, Choice, Choice]:
    """Give the layers that `sets` change their stacks. Raises ConfigError. Returns the sets' names, and the
    choices of the UNet and of the text encoders, for `take_choices`: of whatever the layers end up in.
    """
    layers = Layers(unet, text_encoders)
    changes = {name: changes_of(layers, f"model.adapters.{name}", files) for name, files in sets.items()}
    of_text = {layer for network in text_encoders for _, layer in weighted(network)}
    choice, text_choice = Choice(), Choice()
    for layer in {layer: None for changed in changes.values() for layer in changed}:
        own = [changed.get(layer, ()) for changed in changes.values()]
        stack_layer(layer, own, text_choice if layer in of_text else choice)
    in_text = [name for name, changed in changes.items() if not of_text.isdisjoint(changed)]
    weight: Any = next(unet.parameters())
    return AdapterStacks(tuple(sets), in_text, weight.device, weight.dtype), choice, text_choice


def stack_layer(layer: Layer, sets: Sequence[Sequence[Change]], choice: Choice) -> None:
    """Give one layer its stack. `sets`: what each of them changes in it; `choice`: that of its network."""
    layer.add_module("low_rank", _stack(layer, sets, choice))
    layer.register_forward_hook(_add)


def _add(layer: Any, given: tuple[Tensor, ...], output: Tensor) -> Tensor:
    added: Tensor = layer.low_rank(given[0], output)
    return added


def _stack(layer: Layer, sets: Sequence[Sequence[Change]], choice: Choice) -> LowRankStack:
    weight = layer.weight
    rank = max(sum(len(low.down) for low, _ in changes) for changes in sets)
    down = weight.new_zeros(len(sets) + 1, rank, weight[0].numel())
    up = weight.new_zeros(len(sets) + 1, weight.shape[0], rank)
    for place, changes in enumerate(sets, 1):
        begin = 0
        for low, scale in changes:
            end = begin + len(low.down)
            down[place, begin:end] = low.down.flatten(1)
            # In the precision of the sum that a merged weight is, and rounded once.
            exact = torch.promote_types(weight.dtype, torch.float32)
            up[place, :, begin:end] = low.up.flatten(1).to(exact) * (scale * low.factor)
            begin = end
    return LowRankStack(layer, down, up, choice)
