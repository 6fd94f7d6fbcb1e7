"""UNet calls compiled for their shape, in this process or from an artefact that lies on disk.

Whoever compiles is given the call as a function of tensors (`flat.py`) and returns another one that gives the
same but for rounding, or None: such calls run eager, and are counted.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Protocol

import torch
from torch import Tensor

from rearview.engine.acceleration.flat import CallShape, FlatCall, FlatUNet, shape_of
from rearview.engine.acceleration.graphs import Counts
from rearview.engine.memory.protocol import Updates, Views
from rearview.engine.networks.call import EagerCall, UNetInputs

__all__ = ["Compile", "CompiledCall", "by_inductor"]

Compiled = Callable[..., Sequence[Tensor]]
"""Takes what a `FlatUNet` takes and returns what it returns."""


class Compile(Protocol):
    """Makes the compiled form of a call. None: there is none."""

    def __call__(self, shape: CallShape, call: FlatUNet, tensors: Sequence[Tensor]) -> Compiled | None: ...


def by_inductor(backend: str = "inductor", **options: Any) -> Compile:
    """torch.compile, in this process: takes tens of seconds for each shape."""

    def compile(shape: CallShape, call: FlatUNet, tensors: Sequence[Tensor]) -> Compiled:
        made: Compiled = torch.compile(call, fullgraph=True, dynamic=False, backend=backend, **options)
        return made

    return compile


class CompiledCall:
    """See the module's docstring. The first call of a shape runs eager, and is what is compiled for."""

    def __init__(self, unet: Any, compile: Compile) -> None:
        self.counts = Counts()
        self._unet, self._eager, self._compile = unet, EagerCall(unet), compile
        self._made: dict[CallShape, tuple[Compiled, Updates] | None] = {}
        """With the updates that a call of that shape leaves, without their tensors' content."""

    def __call__(self, inputs: UNetInputs, views: Views) -> tuple[Tensor, Updates]:
        """See `UNetCall`."""
        shape = shape_of(inputs, views)
        if shape not in self._made:
            return self._first(shape, inputs, views)
        made = self._made[shape]
        if made is None:
            self.counts.eager += 1
            return self._eager(inputs, views)
        self.counts.accelerated += 1
        compiled, example = made
        prediction_BCHW, *left = compiled(*FlatCall.changing(inputs, views), *FlatCall.pooled(views))
        return prediction_BCHW, _filled(example, left)

    def _first(self, shape: CallShape, inputs: UNetInputs, views: Views) -> tuple[Tensor, Updates]:
        self.counts.eager += 1
        result = self._eager(inputs, views)
        tensors = (*FlatCall.changing(inputs, views), *FlatCall.pooled(views))
        compiled = self._compile(shape, FlatUNet(self._unet, inputs, views), tensors)
        if compiled is None:
            self._made[shape] = None
        else:
            example = Updates(
                {
                    name: update.over([tensor.to("meta") for tensor in update.tensors])
                    for name, update in result[1].items()
                }
            )
            self._made[shape] = compiled, example
        return result


def _filled(example: Updates, tensors: Sequence[Tensor]) -> Updates:
    """The same updates, of these tensors."""
    rest = iter(tensors)
    return Updates(
        {name: update.over([next(rest) for _ in update.tensors]) for name, update in example.items()}
    )
