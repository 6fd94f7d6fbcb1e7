"""UNet calls compiled for their shape, in this process or from an artefact that lies on disk.

Whoever compiles is given the call as a function of tensors (`flat.py`) and returns another one that gives the
same but for rounding, or None: such calls run eager, and are counted.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Protocol

from torch import Tensor, nn

from rearview.engine.acceleration.autoencoder import AcceleratedAutoencoder, FindNetwork
from rearview.engine.acceleration.counts import Counts
from rearview.engine.acceleration.flat import CallShape, FlatCall, FlatUNet, free_dims, shape_of
from rearview.engine.acceleration.packages import Compiled, Forms, in_process
from rearview.engine.acceleration.stock import Stock, worded
from rearview.engine.memory.protocol import Updates, Views
from rearview.engine.networks.call import EagerCall, UNetInputs
from rearview.engine.networks.model import DiffusionModel

__all__ = ["Compile", "CompiledCall", "by_inductor", "part_of", "use"]


class Compile(Protocol):
    """Makes the compiled form of a call. None: there is none."""

    def __call__(self, shape: CallShape, call: FlatUNet, tensors: Sequence[Tensor]) -> Compiled | None: ...


def by_inductor(backend: str = "inductor") -> Compile:
    """torch.compile, in this process: once for one sample and once for several of a sort of calls. Takes a
    minute or two for a large UNet, unless Inductor's caches know it.
    """
    forms = Forms[Compiled]()

    def compile(shape: CallShape, call: FlatUNet, tensors: Sequence[Tensor]) -> Compiled:
        def make() -> Compiled:
            return in_process(call, free_dims(call.grows, shape.samples, tensors), backend)

        return forms.find(id(call.unet), shape.sort, shape.samples, make)

    return compile


def part_of(adapters: str) -> str:
    """Name of the UNet under an adapter set, as a part of the model; "": under none."""
    return f"unet:{adapters}" if adapters else "unet"


def _calls(stock: Stock, part: str) -> Compile:
    """What lies on disk for that part."""

    def compile(shape: CallShape, call: FlatUNet, tensors: Sequence[Tensor]) -> Compiled | None:
        return stock.find(part, worded(shape.sort, tensors), shape.samples, call)

    return compile


def _networks(stock: Stock) -> FindNetwork:
    """The same for the networks of an autoencoder."""

    def find(part: str, network: nn.Module, given_BCHW: Tensor) -> Compiled | None:
        return stock.find(
            part, worded(tuple(given_BCHW.shape[1:]), [given_BCHW]), given_BCHW.shape[0], network
        )

    return find


def use(stock: Stock, model: DiffusionModel) -> None:
    """Let a model run from what lies on disk, and eager where there is nothing. What accelerated it before is
    not used any more.
    """
    for adapters, denoiser in model.denoisers.items():
        denoiser.call = CompiledCall(denoiser.unet, _calls(stock, part_of(adapters)))
    if model.vae is not None:
        bare = model.vae.vae if isinstance(model.vae, AcceleratedAutoencoder) else model.vae
        model.vae = AcceleratedAutoencoder(bare, _networks(stock))


class CompiledCall:
    """See the module's docstring. The first call of a shape runs eager too, and is what is compiled for."""

    def __init__(self, unet: Any, compile: Compile) -> None:
        self.counts = Counts()
        self._unet, self._eager, self._compile = unet, EagerCall(unet), compile
        self._made: dict[CallShape, tuple[Compiled, Updates] | None] = {}
        """With the updates that a call of that shape leaves, without their tensors' content."""

    def __call__(self, inputs: UNetInputs, views: Views) -> tuple[Tensor, Updates]:
        """See `UNetCall`."""
        shape = shape_of(inputs, views)
        if shape not in self._made:
            self._made[shape] = self._first(shape, inputs, views)
        made = self._made[shape]
        if made is None:
            self.counts.count(accelerated=False)
            return self._eager(inputs, views)
        self.counts.count(accelerated=True)
        compiled, example = made
        prediction_BCHW, *left = compiled(*FlatCall.tensors(inputs, views))
        return prediction_BCHW, _filled(example, left)

    def _first(self, shape: CallShape, inputs: UNetInputs, views: Views) -> tuple[Compiled, Updates] | None:
        call, tensors = FlatUNet(self._unet, inputs, views), FlatCall.tensors(inputs, views)
        compiled = self._compile(shape, call, tensors)
        if compiled is None:
            return None
        _, updates = self._eager(inputs, views)
        return compiled, Updates(
            {
                name: update.over([tensor.to("meta") for tensor in update.tensors])
                for name, update in updates.items()
            }
        )


def _filled(example: Updates, tensors: Sequence[Tensor]) -> Updates:
    """The same updates, of these tensors."""
    rest = iter(tensors)
    return Updates(
        {name: update.over([next(rest) for _ in update.tensors]) for name, update in example.items()}
    )
