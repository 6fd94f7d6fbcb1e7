"""A UNet call as a function of tensors alone, which can be captured, exported and compiled.

What is no tensor is the call's *shape*: which inputs there are, and for each kind of memory the key of its
view. Calls of equal shapes, numbers of samples and sizes have tensors of equal shapes and run the same
operators, so one graph serves them all.
"""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from dataclasses import dataclass
from itertools import islice

import torch
from torch import Tensor, nn

from rearview.engine.acceleration.packages import Dims
from rearview.engine.memory.protocol import Updates, Views
from rearview.engine.networks.call import EagerCall, UNetInputs

__all__ = [
    "CallShape",
    "CallSort",
    "FlatCall",
    "FlatUNet",
    "free_dims",
    "grows",
    "lengthened",
    "padded",
    "shape_of",
]


@dataclass(frozen=True, slots=True)
class CallSort:
    """What calls of the same sort have in common: all of their shape but the number of samples."""

    given: tuple[str, ...]
    """See `UNetInputs.given`."""
    views: tuple[tuple[str, Hashable], ...]
    """See `CallShape.views`."""
    sizes: tuple[tuple[int, ...], ...]
    """Shapes of the inputs of one sample."""


@dataclass(frozen=True, slots=True)
class CallShape:
    """All of a call that is no tensor, and the shapes of those that are."""

    given: tuple[str, ...]
    """See `UNetInputs.given`."""
    views: tuple[tuple[str, Hashable], ...]
    """Name of each kind of memory and key of its view, in the order of the views."""
    sizes: tuple[tuple[int, ...], ...]
    """Shapes of the inputs."""

    @property
    def samples(self) -> int:
        """B."""
        return self.sizes[0][0]

    @property
    def sort(self) -> CallSort:
        """Of what sort the call is."""
        return CallSort(self.given, self.views, tuple(size[1:] for size in self.sizes))


def shape_of(inputs: UNetInputs, views: Views) -> CallShape:
    """The shape of a call."""
    return CallShape(
        inputs.given,
        tuple((name, view.key) for name, view in views.items()),
        tuple(tuple(tensor.shape) for tensor in inputs.tensors),
    )


def padded(inputs: UNetInputs, samples: int) -> UNetInputs:
    """The same inputs of so many `samples`: copies of the first follow, and what they leave is worth nothing.
    They need no place of their own to read from or write to, since a forward writes nothing.
    """
    return UNetInputs.of(inputs.given, [lengthened(tensor, samples) for tensor in inputs.tensors])


def lengthened(tensor: Tensor, samples: int) -> Tensor:
    """With copies of the first of its samples behind the last; it lies in memory as before."""
    # One by one: an expanded tensor has strides of its own, and the result would have them too.
    return torch.cat([tensor, *[tensor[:1]] * (samples - len(tensor))])


@dataclass(frozen=True, slots=True, eq=False)
class FlatCall:
    """A call taken apart: its changing tensors first, then the memories' own."""

    given: tuple[str, ...]
    views: Views
    """Examples: of which the keys count."""

    @staticmethod
    def changing(inputs: UNetInputs, views: Views) -> tuple[Tensor, ...]:
        """What differs from call to call."""
        return (*inputs.tensors, *(tensor for view in views.values() for tensor in view.tensors))

    @staticmethod
    def pooled(views: Views) -> tuple[Tensor, ...]:
        """What is read in place."""
        return tuple(tensor for view in views.values() for tensor in view.pooled)

    @staticmethod
    def tensors(inputs: UNetInputs, views: Views) -> tuple[Tensor, ...]:
        """Both: what a `FlatUNet` takes."""
        return (*FlatCall.changing(inputs, views), *FlatCall.pooled(views))

    def over(self, changing: Sequence[Tensor], pooled: Sequence[Tensor]) -> tuple[UNetInputs, Views]:
        """The call of these tensors."""
        rest, places = iter(changing), iter(pooled)
        inputs = UNetInputs.of(self.given, list(islice(rest, 3 + len(self.given))))
        views = Views(
            {
                name: view.over(list(islice(rest, len(view.tensors))), list(islice(places, len(view.pooled))))
                for name, view in self.views.items()
            }
        )
        return inputs, views


class FlatUNet(nn.Module):
    """A UNet under one call's shape: takes its changing tensors and the pooled ones, returns the prediction
    and then what the samples leave.
    """

    def __init__(self, unet: nn.Module, inputs: UNetInputs, views: Views) -> None:
        """`inputs`, `views`: a call of that shape."""
        super().__init__()
        self.unet = unet
        self.grows = grows(inputs, views)
        """See `grows`."""
        self._call = FlatCall(inputs.given, _without_content(views))
        self._num_changing = len(FlatCall.changing(inputs, views))

    def forward(self, *tensors: Tensor) -> tuple[Tensor, ...]:
        count = self._num_changing
        inputs, views = self._call.over(tensors[:count], tensors[count:])
        prediction, updates = EagerCall(self.unet)(inputs, views)
        return (prediction, *left_by(updates))


def _without_content(views: Views) -> Views:
    """The same views of nothing: pools are not kept alive for their shapes."""

    def empty(tensors: Sequence[Tensor]) -> list[Tensor]:
        return [each.to("meta") for each in tensors]

    return Views({name: view.over(empty(view.tensors), empty(view.pooled)) for name, view in views.items()})


def left_by(updates: Updates) -> tuple[Tensor, ...]:
    """The tensors of a call's updates, kind by kind."""
    return tuple(tensor for update in updates.values() for tensor in update.tensors)


def grows(inputs: UNetInputs, views: Views) -> Dims:
    """Of each changing tensor of a call, which dimensions one sample more would lengthen."""
    more = views.beside([0])
    pairs = [
        (tensor.shape, other.shape)
        for name, view in views.items()
        for tensor, other in zip(view.tensors, more[name].tensors, strict=True)
    ]
    grown = [[i for i, (a, b) in enumerate(zip(*pair, strict=True)) if a != b] for pair in pairs]
    return [*([0] for _ in inputs.tensors), *grown]


def free_dims(grows: Dims, samples: int, tensors: Sequence[Tensor]) -> Dims:
    """Dimensions that may be of any size where a call of so many `samples` is compiled: for one sample, or
    for any number from two. Behind the changing tensors come pools, of which services have different numbers
    of slots.
    """
    changing = [[] for _ in grows] if samples == 1 else grows
    return [*changing, *([0] for _ in tensors[len(grows) :])]
