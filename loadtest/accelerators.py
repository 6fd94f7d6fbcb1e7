"""Ways to run the networks that are measured beside eager."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from rearview.engine.acceleration.autoencoder import AcceleratedAutoencoder
from rearview.engine.acceleration.compiled import CompiledCall, by_inductor
from rearview.engine.acceleration.counts import Counts
from rearview.engine.acceleration.flat import CallShape, FlatUNet
from rearview.engine.acceleration.graphs import CudaRecorder, capture
from rearview.engine.acceleration.packages import Compiled, Forms, in_process
from rearview.engine.networks.call import EagerCall
from rearview.engine.networks.model import DiffusionModel
from torch import Tensor, nn

__all__ = ["ACCELERATORS", "Accelerators", "Running", "accelerate"]

ACCELERATORS = ("eager", "graphs", "compiled", "compiled graphs")
"""Graphs are of CUDA alone; compiling takes Inductor a minute for each sort of call, once for one sample and
once for several."""


@dataclass(frozen=True)
class Running:
    """How a model runs now."""

    counts: Sequence[Counts]
    """Of calls of its UNets; none if it runs eager."""
    others: Sequence[Counts]
    """Of calls of its other networks that are captured."""
    made: list[str]
    """Grows with each form that is compiled."""

    @property
    def accelerated(self) -> int:
        """UNet calls."""
        return sum(each.accelerated for each in self.counts)

    @property
    def eager(self) -> int:
        """UNet calls that were to be accelerated and were not."""
        return sum(each.eager for each in self.counts)

    @property
    def unready(self) -> int:
        """What was not ready when it was called for: grows no more once all shapes have been seen."""
        return self.eager + sum(each.eager for each in self.others) + len(self.made)


class Accelerators:
    """Lets one model run in several ways, in turns. What was compiled once stays; graphs do not, since they
    keep the memories over which they were captured.
    """

    def __init__(self, model: DiffusionModel, backend: str = "inductor") -> None:
        """`backend`: what torch.compile compiles with."""
        self._model, self._vae, self._made = model, model.vae, list[str]()
        while isinstance(self._vae, AcceleratedAutoencoder):  # Others have made it run so.
            self._vae = self._vae.vae
        self._backend, self._compile = backend, by_inductor(backend)
        self._calls = {name: CompiledCall(each.unet, self._unet) for name, each in model.denoisers.items()}
        self._parts = Forms[Compiled]()

    def use(self, accelerator: str) -> Running:
        """Let the model run so from now on."""
        assert accelerator in ACCELERATORS, accelerator
        compiles = accelerator.startswith("compiled")
        self._model.vae = AcceleratedAutoencoder(self._vae, self._part) if compiles else self._vae
        for name, denoiser in self._model.denoisers.items():
            denoiser.call = self._calls[name] if compiles else EagerCall(denoiser.unet)
        counts = [call.counts for call in self._calls.values()] if compiles else []
        others: Sequence[Counts] = ()
        if accelerator.endswith("graphs"):
            captured, unets = capture(self._model, CudaRecorder()), len(self._calls)
            counts, others = [*captured[:unets]], captured[unets:]
        return Running(counts, others, self._made)

    def _unet(self, shape: CallShape, call: FlatUNet, tensors: Sequence[Tensor]) -> Compiled | None:
        """Not of windows: a session has one, and it would take as long to compile as all its other frames."""
        if any(getattr(key, "is_window", False) for _, key in shape.views):
            return None
        self._made.append(f"unet {shape.samples}")
        return self._compile(shape, call, tensors)

    def _part(self, part: str, network: nn.Module, given_BCHW: Tensor) -> Compiled:
        samples = len(given_BCHW)

        def make() -> Compiled:
            self._made.append(f"{part} {samples}")
            return in_process(network, [[0] if samples > 1 else []], self._backend)

        return self._parts.find(part, given_BCHW.shape[1:], samples, make)


def accelerate(model: DiffusionModel, accelerator: str) -> Sequence[Counts]:
    """Let `model` run so for good; returns the counts of calls, none if it runs eager."""
    return Accelerators(model).use(accelerator).counts
