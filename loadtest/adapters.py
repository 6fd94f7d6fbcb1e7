"""Adapter sets to switch between: small random LoRAs of a checkpoint's attention. What they do to a picture
is of no interest, and published ones fit none of the bundled models.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from rearview.contract.card import checkpoint_folder
from safetensors import safe_open
from safetensors.torch import save_file

__all__ = ["random_adapters"]

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


def _query_shapes(checkpoint: str) -> Mapping[str, Sequence[int]]:
    """Of the UNet's query projections, by layer."""
    path = checkpoint_folder(checkpoint) / "unet" / "diffusion_pytorch_model.safetensors"
    with safe_open(path, "pt") as weights:
        return {
            key.removesuffix(".weight"): weights.get_slice(key).get_shape()
            for key in weights.keys()  # noqa: SIM118 - it is no mapping.
            if key.endswith(".to_q.weight")
        }
