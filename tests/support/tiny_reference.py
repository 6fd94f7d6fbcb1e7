"""Tiny random IP-Adapters in published layouts, with an image encoder: nothing in them is zero."""

from __future__ import annotations

import io
from pathlib import Path

import numpy as np
import torch
from diffusers import UNet2DConditionModel
from diffusers.models.attention_processor import Attention
from PIL import Image
from rearview.contract.reference import ImageFile
from rearview.engine.weights.formats import ReferenceFile
from safetensors.torch import save_file
from torch import Tensor
from transformers import CLIPVisionConfig, CLIPVisionModelWithProjection

ENCODER_SIDE = 32
HIDDEN, PROJECTED = 48, 40
"""Of the image encoder: what `plus` reads, and what the plain kind reads."""
TOKENS = {"plain": 4, "plus": 5}
RESAMPLED = 128
"""Two heads of 64."""
GAIN = 3.0
"""Of what is added, by its fan-in: a reference moves the picture well."""


def write_image_encoder(folder: Path, seed: int = 0) -> Path:
    """CLIP's, of three layers."""
    torch.manual_seed(seed + 300)
    config = CLIPVisionConfig(
        hidden_size=HIDDEN,
        intermediate_size=64,
        projection_dim=PROJECTED,
        num_hidden_layers=3,
        num_attention_heads=4,
        image_size=ENCODER_SIDE,
        patch_size=8,
    )
    CLIPVisionModelWithProjection(config).save_pretrained(folder)
    return folder


def tensors_of(
    checkpoint: Path, kind: str, seed: int = 0, width: int | None = None
) -> dict[str, dict[str, Tensor]]:
    """An adapter of that kind for the UNet of `checkpoint`, or for prompts of another `width`."""
    unet = UNet2DConditionModel.from_pretrained(checkpoint, subfolder="unet")
    generator = torch.Generator().manual_seed(seed + 200)

    def draw(*shape: int, gain: float = 1.0) -> Tensor:
        return gain * torch.randn(shape, generator=generator) / shape[-1] ** 0.5

    prompt = width or unet.config.cross_attention_dim
    crossing = [
        module for name, module in unet.named_modules() if isinstance(module, Attention) and "attn2" in name
    ]
    adapter = {
        f"{2 * at + 1}.{which}_ip.weight": draw(len(module.to_k.weight), prompt, gain=GAIN)
        for at, module in enumerate(crossing)
        for which in ("to_k", "to_v")
    }
    norms = {"weight": 1.0 + draw(prompt), "bias": draw(prompt)}
    if kind == "plain":
        image_proj = {
            "proj.weight": draw(TOKENS[kind] * prompt, PROJECTED, gain=GAIN),
            "proj.bias": draw(TOKENS[kind] * prompt),
            **{f"norm.{name}": each for name, each in norms.items()},
        }
        return {"image_proj": image_proj, "ip_adapter": adapter}
    image_proj = {
        "latents": draw(1, TOKENS[kind], RESAMPLED),
        "proj_in.weight": draw(RESAMPLED, HIDDEN),
        "proj_in.bias": draw(RESAMPLED),
        "proj_out.weight": draw(prompt, RESAMPLED),
        "proj_out.bias": draw(prompt),
        **{f"norm_out.{name}": each for name, each in norms.items()},
    }
    for layer in range(4):  # Diffusers knows no other number.
        for at in ("0.norm1", "0.norm2", "1.0"):
            image_proj[f"layers.{layer}.{at}.weight"] = 1.0 + draw(RESAMPLED)
            image_proj[f"layers.{layer}.{at}.bias"] = draw(RESAMPLED)
        image_proj[f"layers.{layer}.0.to_q.weight"] = draw(RESAMPLED, RESAMPLED)
        image_proj[f"layers.{layer}.0.to_kv.weight"] = draw(2 * RESAMPLED, RESAMPLED)
        image_proj[f"layers.{layer}.0.to_out.weight"] = draw(RESAMPLED, RESAMPLED)
        image_proj[f"layers.{layer}.1.1.weight"] = draw(4 * RESAMPLED, RESAMPLED)
        image_proj[f"layers.{layer}.1.3.weight"] = draw(RESAMPLED, 4 * RESAMPLED)
    return {"image_proj": image_proj, "ip_adapter": adapter}


def write_adapter(path: Path, parts: dict[str, dict[str, Tensor]]) -> Path:
    """As .safetensors, with the part before each name, or as a pickle of both parts."""
    path.parent.mkdir(parents=True, exist_ok=True)
    if path.suffix == ".safetensors":
        flat = {f"{part}.{name}": each.clone() for part, of in parts.items() for name, each in of.items()}
        save_file(flat, path)
    else:
        torch.save(parts, path)
    return path


def reference_file(
    folder: Path, checkpoint: Path, kind: str = "plain", ending: str = ".safetensors"
) -> ReferenceFile:
    """The adapter of a deployment, written into `folder`."""
    path = write_adapter(folder / f"ip-adapter{ending}", tensors_of(checkpoint, kind))
    return ReferenceFile(str(path), str(write_image_encoder(folder / "image_encoder")))


def pixels(seed: int, height: int = ENCODER_SIDE, width: int = ENCODER_SIDE) -> np.ndarray:
    """A picture (H, W, 3) uint8 of large random patches."""
    patches = np.random.default_rng(seed).integers(0, 256, (4, 4, 3), dtype=np.uint8)
    return np.asarray(Image.fromarray(patches).resize((width, height), Image.Resampling.NEAREST))


def png(levels: np.ndarray) -> ImageFile:
    """As settings carry it."""
    file = io.BytesIO()
    Image.fromarray(levels).save(file, "PNG")
    return ImageFile.of(file.getvalue())


def half_mask(height: int, width: int) -> np.ndarray:
    """(H, W) uint8: white in the left half."""
    mask = np.zeros((height, width), np.uint8)
    mask[:, : width // 2] = 255
    return mask
