"""Adapter sets to switch between: small random LoRAs of a checkpoint's attention. What they do to a picture
is of no interest, and published ones fit none of the bundled models.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from rearview.contract.card import checkpoint_folder
from rearview.engine.networks.low_rank import AdapterStacks, Choice, take_choices
from rearview.engine.weights.adapters import LowRank, weighted
from rearview.engine.weights.stacks import stack_layer
from safetensors import safe_open
from safetensors.torch import save_file

__all__ = ["random_adapters", "random_stacks"]

RANK = 4
SPREAD = 1e-3
"""Of their values: the picture stays one."""


def random_adapters(checkpoint: str, folder: Path, names: Sequence[str]) -> Mapping[str, Any]:
    """Write a LoRA for each name into `folder`; returns `model.adapters` of a deployment that has them."""
    shapes = _query_shapes(checkpoint)
    for seed, name in enumerate(names):
        generator = torch.Generator().manual_seed(seed)
        tensors = {}
        for layer, (out, into) in shapes.items():
            tensors[f"unet.{layer}.lora_A.weight"] = SPREAD * torch.randn(RANK, into, generator=generator)
            tensors[f"unet.{layer}.lora_B.weight"] = SPREAD * torch.randn(out, RANK, generator=generator)
        save_file(tensors, folder / f"{name}.safetensors")
    return {name: [{"path": str(folder / f"{name}.safetensors")}] for name in names}


def random_stacks(unet: Any, names: Sequence[str], rank: int) -> AdapterStacks:
    """Give every layer of a UNet's transformers, and of nothing else, sets of random LoRAs: what most files
    change. Only an eighth of the width of what the layer gives, so that pictures stay pictures.
    """
    choice, generator = Choice(), torch.Generator().manual_seed(0)
    layers = [layer for path, layer in weighted(unet) if "transformer_blocks" in path]
    for layer in layers:
        out, into = layer.weight.shape[0], layer.weight.shape[1]
        sets = [
            [
                (
                    LowRank(
                        "random",
                        torch.randn(rank, into, generator=generator) / into**0.5,
                        torch.randn(out, rank, generator=generator) / (8.0 * rank**0.5),
                        1.0,
                    ),
                    1.0,
                )
            ]
            for _ in names
        ]
        stack_layer(layer, sets, choice)
    take_choices(unet, choice)
    return AdapterStacks(names, (), unet.device, unet.dtype)


def _query_shapes(checkpoint: str) -> Mapping[str, Sequence[int]]:
    """Of the UNet's query projections, by layer."""
    path = checkpoint_folder(checkpoint) / "unet" / "diffusion_pytorch_model.safetensors"
    with safe_open(path, "pt") as weights:
        return {
            key.removesuffix(".weight"): weights.get_slice(key).get_shape()
            for key in weights.keys()  # noqa: SIM118 - it is no mapping.
            if key.endswith(".to_q.weight")
        }
