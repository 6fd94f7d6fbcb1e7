"""What a CUDA graph does, on any device: the recorded work once more, on the recorded tensors."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar

from rearview.engine.memory.protocol import Updates
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

__all__ = ["HostSync", "NoHostSync", "StandInRecorder"]

T = TypeVar("T")

SYNCS = frozenset(
    [
        *("item", "_local_scalar_dense", "nonzero", "bincount", "masked_select"),
        *("unique", "_unique2", "equal", "is_nonzero"),
    ]
)
"""Operators whose result, or its shape, the host has to wait for: no graph can hold them. In inference mode
those that are made of others are seen whole."""


class HostSync(RuntimeError):
    """The host would wait for the device."""


class NoHostSync(TorchDispatchMode):
    """Refuses what the host would wait for."""

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = func.overloadpacket.__name__
        if name in SYNCS:
            raise HostSync(name)
        return func(*args, **(kwargs or {}))


class StandInRecorder:
    """Runs the work again in place of a replay, and writes over the results of the first time."""

    def __init__(self) -> None:
        self.recorded = 0
        self.has_room = True

    def record(self, run: Callable[[], T]) -> tuple[Callable[[], object], T]:
        with NoHostSync():
            first = run()
        self.recorded += 1

        def replay() -> None:
            for kept, fresh in zip(_tensors(first), _tensors(run()), strict=True):
                kept.copy_(fresh)

        return replay, first


def _tensors(result: Any) -> list[Tensor]:
    """Of a UNet call, or of a network that returns tensors alone."""
    *tensors, updates = result
    if not isinstance(updates, Updates):
        return [*tensors, updates]
    return [*tensors, *(tensor for update in updates.values() for tensor in update.tensors)]
