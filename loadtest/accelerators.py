"""Ways to run the UNet that are measured beside eager."""

from __future__ import annotations

from rearview.engine.acceleration.compiled import CompiledCall, by_inductor
from rearview.engine.acceleration.counts import Counts
from rearview.engine.acceleration.graphs import CudaRecorder, GraphCall
from rearview.engine.networks.call import EagerCall
from rearview.engine.networks.model import DiffusionModel

__all__ = ["ACCELERATORS", "accelerate"]

ACCELERATORS = ("eager", "graphs", "compiled", "compiled graphs")
"""Graphs are of CUDA alone; compiling takes Inductor tens of seconds for each shape of call."""


def accelerate(model: DiffusionModel, accelerator: str) -> list[Counts]:
    """Let `model` run so from now on; returns the counts of calls, none if it runs eager."""
    assert accelerator in ACCELERATORS, accelerator
    counts = []
    for denoiser in model.denoisers.values():
        eager = EagerCall(denoiser.unet)
        compiled = CompiledCall(denoiser.unet, by_inductor())
        inner = compiled if accelerator.startswith("compiled") else eager
        if accelerator.endswith("graphs"):
            denoiser.call = graphs = GraphCall(inner, CudaRecorder())
            counts.append(graphs.counts)
            continue
        denoiser.call = inner
        if inner is compiled:
            counts.append(compiled.counts)
    return counts
