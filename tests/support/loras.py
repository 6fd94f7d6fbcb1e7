"""Random LoRAs, written in the formats in which LoRAs are published."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors.torch import save_file

LINEAR = "down_blocks.0.attentions.0.transformer_blocks.0.attn1.to_q"
OUT = "down_blocks.0.attentions.0.transformer_blocks.0.attn2.to_out.0"
CONV = "down_blocks.0.resnets.0.conv1"
POINTWISE = "mid_block.attentions.0.proj_in"
TEXT = "encoder.layers.0.self_attn.v_proj"


@dataclass(frozen=True)
class Factors:
    """Of one layer: `up` (out, rank, …) and `down` (rank, in, …)."""

    up: torch.Tensor
    down: torch.Tensor

    @property
    def product(self) -> torch.Tensor:
        """up @ down in the shape of the layer's weight, written as a sum over ranks."""
        terms = (
            torch.einsum("o,i...->oi...", self.up[:, r].flatten(), self.down[r])
            for r in range(len(self.down))
        )
        return sum(terms)  # type: ignore[return-value]


Lora = Mapping[str, Factors]
"""By the layer's path in the UNet, or in the text encoder where it begins with `encoder.`."""


def random_lora(network: Mapping[str, torch.Tensor], layers: list[str], rank: int = 3, seed: int = 0) -> Lora:
    """`network`: weights of UNet and text encoder by path."""
    generator = torch.Generator().manual_seed(seed)
    lora = {}
    for layer in layers:
        out, into, *kernel = network[f"{layer}.weight"].shape
        up = torch.randn(out, rank, *(1 for _ in kernel), generator=generator)
        lora[layer] = Factors(up, torch.randn(rank, into, *kernel, generator=generator))
    return lora


def write_kohya(path: Path, lora: Lora, alpha: float | None) -> Path:
    tensors = {}
    for layer, factors in lora.items():
        name = f"lora_te_text_model_{layer}" if _is_text(layer) else f"lora_unet_{layer}"
        name = name.replace(".", "_")
        tensors[f"{name}.lora_down.weight"] = factors.down
        tensors[f"{name}.lora_up.weight"] = factors.up
        if alpha is not None:
            tensors[f"{name}.alpha"] = torch.tensor(alpha)
    return _save(path, tensors)


def write_peft(path: Path, lora: Lora, alpha: float | None) -> Path:
    """As `save_lora_weights` of today's diffusers: the alpha is in the file's metadata."""
    metadata = {}
    if alpha is not None:
        content = {f"{network}.lora_alpha": alpha for network in ("unet", "text_encoder")}
        metadata = {"lora_adapter_metadata": json.dumps({**content, "unet.r": 3})}
    return _save(path, _named(lora, ".lora_A.weight", ".lora_B.weight"), metadata)


def write_peft_folder(path: Path, lora: Lora, alpha: float | None) -> Path:
    """As peft's own `save_pretrained` of a UNet: settings beside the weights, no network's name."""
    folder = path.with_suffix("")
    folder.mkdir()
    tensors = {
        f"base_model.model.{key.removeprefix('unet.')}": value
        for key, value in _named(lora, ".lora_A.weight", ".lora_B.weight").items()
    }
    _save(folder / "adapter_model.safetensors", tensors)
    content = {} if alpha is None else {"lora_alpha": alpha, "r": 3}
    (folder / "adapter_config.json").write_text(json.dumps(content))
    return folder


def write_diffusers(path: Path, lora: Lora, alpha: float | None) -> Path:
    """As diffusers did before peft; an alpha has no place in it."""
    assert alpha is None
    tensors = _named(
        {k: v for k, v in lora.items() if not _is_text(k)}, ".lora.down.weight", ".lora.up.weight"
    )
    text = {k: v for k, v in lora.items() if _is_text(k)}
    return _save(
        path, {**tensors, **_named(text, ".lora_linear_layer.down.weight", ".lora_linear_layer.up.weight")}
    )


def write_attention_processors(path: Path, lora: Lora, alpha: float | None) -> Path:
    """As the first diffusers with LoRA: attention only, under the processors' names."""
    assert alpha is None
    tensors = {}
    for layer, factors in lora.items():
        attention, _, projection = layer.removesuffix(".0").rpartition(".")
        tensors[f"unet.{attention}.processor.{projection}_lora.down.weight"] = factors.down
        tensors[f"unet.{attention}.processor.{projection}_lora.up.weight"] = factors.up
    return _save(path, tensors)


def _named(lora: Lora, down: str, up: str) -> dict[str, torch.Tensor]:
    tensors = {}
    for layer, factors in lora.items():
        name = f"text_encoder.text_model.{layer}" if _is_text(layer) else f"unet.{layer}"
        tensors[name + down], tensors[name + up] = factors.down, factors.up
    return tensors


def _is_text(layer: str) -> bool:
    return layer.startswith("encoder.")


def _save(path: Path, tensors: dict[str, torch.Tensor], metadata: dict[str, str] | None = None) -> Path:
    save_file({key: value.contiguous() for key, value in tensors.items()}, path, metadata=metadata)
    return path
