"""How a compiled call lies in a file: made by Inductor, in one of two forms.

On a CPU the file is a library of code with the weights in it, packed as its kernels want them, and loads in
milliseconds (AOTInductor). On an accelerator weights would lie there twice, so there it is what Inductor has
generated and chosen, without weights: the network is traced again at the first call, which takes seconds, and
nothing is compiled or tuned anew.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Hashable, Sequence
from pathlib import Path
from typing import Any, Generic, TypeVar

import torch
from torch import Tensor, nn
from torch._dynamo.exc import FailOnRecompileLimitHit
from torch.compiler._cache import CacheArtifactManager

__all__ = ["AHEAD", "BESIDE", "Compiled", "Dims", "Forms", "compile_to", "in_process", "load", "suffix_for"]

logger = logging.getLogger(__name__)

Compiled = Callable[..., Sequence[Tensor]]
"""A function of tensors, with what it returns as a sequence."""
FormT = TypeVar("FormT", bound=Compiled | None)
Dims = Sequence[Sequence[int]]
"""Of each tensor that a call is given, the dimensions that may be of any size."""

AHEAD, BESIDE = ".pt2", ".cache"
"""Suffixes: code with weights; what is beside them."""
MOST_FORMS = 256
"""That torch.compile may make of one piece of Python: all calls of UNets are one piece to it, and its own
limit, 8, is for those who did not mean to.
"""
FREEZES: dict[str, Any] = {"freezing": True}
"""Weights are folded into the code."""


class Forms(Generic[FormT]):
    """What calls were compiled to, each when it was met first: for one sample, and for several."""

    def __init__(self) -> None:
        self._made: dict[tuple[Hashable, Hashable, bool], FormT] = {}

    def find(self, part: Hashable, sort: Hashable, samples: int, make: Callable[[], FormT]) -> FormT:
        """That of a call. `part`: the network; `sort`: of the call, all but its number of `samples`."""
        key = part, sort, samples > 1
        if key not in self._made:
            self._made[key] = make()
        return self._made[key]


def suffix_for(device: torch.device) -> str:
    """Of files for calls on `device`."""
    return AHEAD if device.type == "cpu" else BESIDE


def compile_to(package: Path, network: nn.Module, tensors: Sequence[Tensor], dims: Dims) -> Compiled:
    """Compile `network` as it is called with `tensors`, put that into `package` and load it. Raises whatever
    a compiler may not be able to do.
    """
    if package.suffix == AHEAD:
        shapes = tuple(dict.fromkeys(each, torch.export.Dim.DYNAMIC) for each in dims)
        flat = _Flat(network)
        program = torch.export.export(flat, tuple(tensors), dynamic_shapes=(shapes,), strict=False)
        torch._inductor.aoti_compile_and_package(program, package_path=str(package), inductor_configs=FREEZES)
    else:
        CacheArtifactManager.clear()
        with torch.inference_mode():  # As in service.
            in_process(network, dims)(*tensors)
        made = torch.compiler.save_cache_artifacts()
        if made is None:
            raise RuntimeError("Inductor keeps nothing of what it compiles: are its caches switched off?")
        package.write_bytes(made[0])
    return load(package, network, dims)


def load(package: Path, network: nn.Module, dims: Dims) -> Compiled:
    """What runs a call from `package`. Raises whatever may be wrong with a file of compiled code."""
    if package.suffix == AHEAD:
        loaded: Compiled = torch._inductor.aoti_load_package(str(package))
        return loaded
    if torch.compiler.load_cache_artifacts(package.read_bytes()) is None:
        raise ValueError("it is of another version")
    return in_process(network, dims)


def in_process(network: nn.Module, dims: Dims, backend: str = "inductor") -> Compiled:
    """`network`, compiled when it is called first. A call that the compiler gives up runs as it is.
    `backend`: of torch.compile.
    """
    compiled: Compiled | None = None

    def run(*tensors: Tensor) -> Sequence[Tensor]:
        nonlocal compiled
        if compiled is None:
            torch._dynamo.config.recompile_limit = max(MOST_FORMS, torch._dynamo.config.recompile_limit)
            for tensor, free in zip(tensors, dims, strict=True):
                torch._dynamo.maybe_mark_dynamic(tensor, list(free))
            compiled = torch.compile(network, fullgraph=True, backend=backend)
        try:
            found: Sequence[Tensor] = compiled(*tensors)
        except FailOnRecompileLimitHit:
            logger.warning("a compiled network meets too many shapes: it runs as it is", exc_info=True)
            compiled = network
            found = compiled(*tensors)
        return found

    return run


class _Flat(nn.Module):
    """A network whose arguments are one list, however it names them."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network

    def forward(self, *tensors: Tensor) -> Sequence[Tensor]:
        found: Sequence[Tensor] = self.network(*tensors)
        return found
