"""Ways to run the UNet that are measured beside eager."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from rearview.engine.acceleration.autoencoder import CompiledAutoencoder
from rearview.engine.acceleration.compiled import CompiledCall, by_inductor
from rearview.engine.acceleration.counts import Counts
from rearview.engine.acceleration.graphs import CudaRecorder, capture
from rearview.engine.acceleration.packages import Compiled
from rearview.engine.networks.call import EagerCall
from rearview.engine.networks.model import DiffusionModel
from torch import Tensor, nn

__all__ = ["ACCELERATORS", "accelerate"]

ACCELERATORS = ("eager", "graphs", "compiled", "compiled graphs")
"""Graphs are of CUDA alone; compiling takes Inductor tens of seconds for each shape of call."""


def accelerate(model: DiffusionModel, accelerator: str) -> Sequence[Counts]:
    """Let `model` run so from now on; returns the counts of calls, none if it runs eager."""
    assert accelerator in ACCELERATORS, accelerator
    for denoiser in model.denoisers.values():
        denoiser.call = EagerCall(denoiser.unet)
    while isinstance(model.vae, CompiledAutoencoder):
        model.vae = model.vae.vae
    counts: Sequence[Counts] = ()
    if accelerator.startswith("compiled"):
        counts = compile_all(model)
    if accelerator.endswith("graphs"):
        counts = capture(model, CudaRecorder())
    return counts


def compile_all(model: DiffusionModel) -> Sequence[Counts]:
    """Each network by Inductor, for each shape of call when it comes first."""
    calls = []
    for denoiser in model.denoisers.values():
        denoiser.call = call = CompiledCall(denoiser.unet, by_inductor())
        calls.append(call.counts)
    made: dict[tuple[str, torch.Size], Compiled] = {}

    def find(part: str, network: nn.Module, given_BCHW: Tensor) -> Compiled:
        key = part, given_BCHW.shape
        if key not in made:
            made[key] = torch.compile(network, fullgraph=True, dynamic=False)
        return made[key]

    model.vae = vae = CompiledAutoencoder(model.vae, find)
    return [*calls, vae.counts]
