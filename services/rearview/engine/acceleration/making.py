"""Compiling calls ahead of time, for a `Stock`, and a look at what came of it.

Calls are watched while an engine plays (`Watched`), so that what is compiled is what runs in service. Each is
compiled for one sample, and for any number of them from two. What comes of it is kept if it is as exact as
the network run module by module (its error against one type wider is at most `MOST_ERROR` times theirs), does
the same twice, and is faster. Takes about two minutes of one core for each call of a small UNet.
"""

from __future__ import annotations

import copy
import math
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch._inductor.cpp_builder import get_cpp_compiler
from torch._inductor.exc import InvalidCxxCompiler

from rearview.engine.acceleration.autoencoder import AcceleratedAutoencoder
from rearview.engine.acceleration.compiled import part_of
from rearview.engine.acceleration.flat import FlatCall, FlatUNet, free_dims, shape_of
from rearview.engine.acceleration.packages import Compiled, Dims, compile_to, suffix_for
from rearview.engine.acceleration.stock import Artefact, Stock, worded
from rearview.engine.devices import synchronize
from rearview.engine.memory.protocol import Updates, Views
from rearview.engine.networks.call import EagerCall, UNetInputs
from rearview.engine.networks.model import DiffusionModel

__all__ = ["CannotCompile", "Seen", "Watched", "check_compiler", "make"]

MOST_ERROR = 1.5
"""Times that of the eager network."""
EXACT_ENOUGH = {torch.float32: 1e-5, torch.float64: 1e-12}
"""Relative RMS that is let pass whatever eager reaches: the order of a sum alone makes as much."""
LEAST_GAIN = 1.03
"""Slower than that it is not worth another kernel."""
RUNS = 9
WIDER = {torch.float32: torch.float64, torch.float64: torch.float64}


class CannotCompile(Exception):
    """This machine has no compiler, or not all that one needs."""


@dataclass(frozen=True, slots=True, eq=False)
class Seen:
    """A call that ran: a network as a function of tensors, and what it was given."""

    part: str
    sort: str
    samples: int
    network: nn.Module
    tensors: Sequence[Tensor]
    grows: Dims
    """See `flat.grows`."""

    @property
    def dims(self) -> Dims:
        """Dimensions that may be of any size where it runs again."""
        return free_dims(self.grows, self.samples, self.tensors)

    @property
    def key(self) -> tuple[str, str, bool]:
        """As an artefact of it has."""
        return self.part, self.sort, self.samples > 1


class Watched:
    """Notes the calls of a model's networks, one of each kind, while they run as they are."""

    def __init__(self, model: DiffusionModel) -> None:
        self._seen: dict[tuple[str, str, bool], Seen] = {}
        for adapters, denoiser in model.denoisers.items():
            denoiser.call = _WatchedCall(denoiser.unet, part_of(adapters), self._note)
        if model.vae is not None:
            model.vae = AcceleratedAutoencoder(model.vae, self._watch)

    @property
    def calls(self) -> Sequence[Seen]:
        """In the order in which they came."""
        return tuple(self._seen.values())

    def _note(self, seen: Seen) -> None:
        if seen.key not in self._seen:
            self._seen[seen.key] = seen

    def _watch(self, part: str, network: nn.Module, given_BCHW: Tensor) -> None:
        sort, samples = worded(tuple(given_BCHW.shape[1:]), [given_BCHW]), given_BCHW.shape[0]
        self._note(Seen(part, sort, samples, network, (given_BCHW.clone(),), [[0]]))


class _WatchedCall(EagerCall):
    def __init__(self, unet: Any, part: str, note: Callable[[Seen], None]) -> None:
        super().__init__(unet)
        self._network, self._part, self._note = unet, part, note

    def __call__(self, inputs: UNetInputs, views: Views) -> tuple[Tensor, Updates]:
        shape = shape_of(inputs, views)
        pools = FlatCall.pooled(views)
        tensors = (*(each.clone() for each in FlatCall.changing(inputs, views)), *pools)
        sort, network = worded(shape.sort, tensors), FlatUNet(self._network, inputs, views)
        self._note(Seen(self._part, sort, shape.samples, network, tensors, network.grows))
        return super().__call__(inputs, views)


def make(seen: Seen, stock: Stock, on_error: Callable[[str], None]) -> Artefact:
    """Compile a call, look at it, and put it into the stock, with its file or without. `on_error` is told why
    a call cannot be compiled.
    """
    tensors = _in_service(seen)
    with torch.no_grad(), tempfile.TemporaryDirectory() as folder:
        package = Path(folder) / f"call{suffix_for(tensors[0].device)}"
        try:
            compiled = compile_to(package, seen.network, tensors, seen.dims)
        except Exception as failure:  # Whatever a compiler may not be able to do.
            on_error(f"{seen.part}: {type(failure).__name__}: {str(failure).partition(chr(10))[0][:200]}")
            return stock.add(Artefact(*seen.key, "", seen.dims, math.inf, 0.0, math.inf, 0.0), None)
        error, eager_error, limit = _errors(seen.network, compiled, tensors)
        seconds, eager_seconds = _seconds(compiled, seen.network, tensors)
        is_good = error <= limit and seconds * LEAST_GAIN <= eager_seconds
        found = Artefact(*seen.key, "", seen.dims, error, eager_error, seconds, eager_seconds)
        return stock.add(found, package if is_good else None)


def check_compiler() -> None:
    """Raises CannotCompile without a C++ compiler."""
    try:
        get_cpp_compiler()
    except InvalidCxxCompiler:
        text = "there is no C++ compiler (Debian: apt install g++; macOS: xcode-select --install)"
        raise CannotCompile(text) from None


def _in_service(seen: Seen) -> list[Tensor]:
    """Tensors as they come, with noise where a grey example has zeros."""
    generator = torch.Generator().manual_seed(0)

    def filled(tensor: Tensor) -> Tensor:
        if not tensor.is_floating_point() or tensor.count_nonzero() > tensor.numel() // 2:
            return tensor.clone()
        noise = torch.randn(tensor.shape, generator=generator)
        return torch.empty_like(tensor).copy_(noise)

    return [filled(tensor) for tensor in seen.tensors]


def _errors(network: nn.Module, compiled: Compiled, tensors: Sequence[Tensor]) -> tuple[float, float, float]:
    """Of the output that is nearest to what may be, or beyond it: relative RMS of compiled and of eager, and
    the most that compiled may have. Infinite for what is not the same twice.
    """
    dtype = tensors[0].dtype
    wider = WIDER.get(dtype, torch.float32)
    exact = copy.deepcopy(network).to(wider)(*(_to(tensor, wider) for tensor in tensors))
    eager, once, twice = network(*tensors), compiled(*tensors), compiled(*tensors)
    found = []
    for reference, plain, one, other in zip(exact, eager, once, twice, strict=True):
        error = _relative(one, reference) if torch.equal(one, other) else math.inf
        plain_error = _relative(plain, reference)
        found.append((error, plain_error, max(MOST_ERROR * plain_error, EXACT_ENOUGH.get(dtype, 0.0))))
    return max(found, key=lambda each: each[0] / each[2] if each[2] else math.inf * each[0])


def _to(tensor: Tensor, dtype: torch.dtype) -> Tensor:
    return tensor.to(dtype) if tensor.is_floating_point() else tensor


def _relative(found: Tensor, reference: Tensor) -> float:
    """Relative RMS; infinite for what is not finite."""
    wide = reference.double()
    error = float((found.double() - wide).norm() / wide.norm().clamp_min(1e-30))
    return error if math.isfinite(error) else math.inf


def _seconds(compiled: Compiled, network: nn.Module, tensors: Sequence[Tensor]) -> tuple[float, float]:
    """The fastest of some runs each, in turns."""
    found: tuple[list[float], list[float]] = ([], [])
    for _ in range(RUNS):
        for run, taken_s in ((compiled, found[0]), (network, found[1])):
            started_s = time.perf_counter()
            run(*tensors)
            synchronize()
            taken_s.append(time.perf_counter() - started_s)
    return min(found[0]), min(found[1])
