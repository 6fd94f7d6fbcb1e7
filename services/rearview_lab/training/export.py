"""Writing a checkpoint folder: ordinary diffusers and transformers sub-folders, fp16, plus our
``rearview.json``.

The folder is written under a temporary name and swapped in, so that a reader sees either the old or the new
one.
"""

from __future__ import annotations

import copy
import json
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import diffusers
import torch
from diffusers import AutoencoderTiny, UNet2DConditionModel
from torch import nn
from transformers import CLIPTextModel, CLIPTokenizer

from rearview_lab.data.prompts import PHRASES, canonical_prompt
from rearview_lab.data.styles import STYLES
from rearview_lab.training.model import (
    LATENT_CHANNELS,
    LATENT_STD,
    build_scheduler,
    build_text_encoder,
    build_unet,
    build_vae,
)
from rearview_lab.training.vocabulary import build_tokenizer

DEFAULT_STRENGTH = 0.4
DEFAULT_STEPS = 2
MOTION = "motion_adapter"
"""Sub-folder of the motion modules."""
BANK = {"policy": "queue", "interval": 1, "max_frames": 2, "fusion_strength": 0.0}
"""The feature bank that the model is served with, in the names of the deployment's `bank` section. Training
shows it one frame more, which steadies a little better but costs more than 5 % of the mean gradient."""


@dataclass(frozen=True)
class Pocket:
    """The parts of one checkpoint."""

    vae: AutoencoderTiny
    unet: UNet2DConditionModel
    text_encoder: CLIPTextModel
    tokenizer: CLIPTokenizer


def random_pocket(seed: int = 0) -> Pocket:
    """Untrained weights in the exact architecture, for timing and for tests of the plumbing."""
    torch.manual_seed(seed)
    tokenizer = build_tokenizer()
    text_encoder = build_text_encoder(
        len(tokenizer), start=tokenizer.bos_token_id, end=tokenizer.eos_token_id
    )
    return Pocket(build_vae(), build_unet(), text_encoder, tokenizer)


def load_pocket(folder: Path, dtype: torch.dtype = torch.float32) -> Pocket:
    """Load a checkpoint folder with the plain loaders of its libraries."""
    return Pocket(
        AutoencoderTiny.from_pretrained(folder, subfolder="vae", torch_dtype=dtype),
        UNet2DConditionModel.from_pretrained(folder, subfolder="unet", torch_dtype=dtype),
        CLIPTextModel.from_pretrained(folder, subfolder="text_encoder", dtype=dtype),
        CLIPTokenizer.from_pretrained(folder, subfolder="tokenizer"),
    )


def style_manifest(training: dict[str, Any]) -> dict[str, Any]:
    """What ``rearview.json`` says: styles, their phrases, defaults and latent statistics."""
    return {
        "name": "pocket",
        "styles": {
            style: {"prompt": canonical_prompt(style), "phrases": list(PHRASES[style])} for style in STYLES
        },
        "default_style": "natural",
        "default_strength": DEFAULT_STRENGTH,
        "default_steps": DEFAULT_STEPS,
        "bank": BANK,
        "sizes": [128, 256, 384, 512],
        "latent": {"channels": LATENT_CHANNELS, "std": LATENT_STD, "mean": 0.0},
        "training": training,
    }


def write_checkpoint(
    pocket: Pocket,
    folder: Path,
    *,
    training: dict[str, Any],
    card: str | None = None,
    keep_motion: bool = False,
) -> None:
    """Write all parts in fp16 and replace ``folder``; without ``card`` an existing README.md is kept.

    `keep_motion`: keep the motion modules that lie there; they fit no other denoiser than theirs.
    """
    folder.parent.mkdir(parents=True, exist_ok=True)
    fresh, old = folder.with_name(folder.name + ".new"), folder.with_name(folder.name + ".old")
    shutil.rmtree(fresh, ignore_errors=True)
    fresh.mkdir()
    for name, part in (("vae", pocket.vae), ("unet", pocket.unet), ("text_encoder", pocket.text_encoder)):
        _halve(part).save_pretrained(fresh / name, safe_serialization=True)
    _clean_configs(fresh)
    build_scheduler().save_pretrained(fresh / "scheduler")
    _write_tokenizer(pocket.tokenizer, fresh / "tokenizer")
    _write_json(fresh / "model_index.json", _model_index())
    _write_json(fresh / "rearview.json", style_manifest(training))
    if card is not None:
        (fresh / "README.md").write_text(card, encoding="utf-8")
    elif (folder / "README.md").exists():
        shutil.copy(folder / "README.md", fresh / "README.md")
    if keep_motion and (folder / MOTION).is_dir():
        shutil.copytree(folder / MOTION, fresh / MOTION)
    shutil.rmtree(old, ignore_errors=True)
    if folder.exists():
        folder.rename(old)
    fresh.rename(folder)
    shutil.rmtree(old, ignore_errors=True)


def checkpoint_bytes(folder: Path) -> int:
    """Size of every file of a checkpoint."""
    return sum(file.stat().st_size for file in folder.rglob("*") if file.is_file())


def _halve(part: nn.Module) -> Any:
    """A copy on the CPU in fp16, in plain memory order."""
    half = copy.deepcopy(part).cpu().eval()
    for tensor in (*half.parameters(), *half.buffers()):
        if tensor.is_floating_point():
            tensor.data = tensor.data.half().contiguous(memory_format=torch.contiguous_format)
    return half


def _model_index() -> dict[str, Any]:
    return {
        "_class_name": "StableDiffusionImg2ImgPipeline",
        "_diffusers_version": diffusers.__version__,
        "feature_extractor": [None, None],
        "image_encoder": [None, None],
        "requires_safety_checker": False,
        "safety_checker": [None, None],
        "scheduler": ["diffusers", "LCMScheduler"],
        "text_encoder": ["transformers", "CLIPTextModel"],
        "tokenizer": ["transformers", "CLIPTokenizer"],
        "unet": ["diffusers", "UNet2DConditionModel"],
        "vae": ["diffusers", "AutoencoderTiny"],
    }


def _clean_configs(folder: Path) -> None:
    """Drop keys that the savers write and the loaders warn about, and the path a part was loaded from."""
    for name in ("vae", "unet", "text_encoder"):
        file = folder / name / "config.json"
        config = json.loads(file.read_text(encoding="utf-8"))
        config.pop("_name_or_path", None)
        if name == "vae":
            config.pop("block_out_channels", None)
        _write_json(file, config)


def _write_tokenizer(tokenizer: CLIPTokenizer, folder: Path) -> None:
    """The fast format plus ``vocab.json`` and ``merges.txt``, which older loaders want."""
    tokenizer.save_pretrained(folder)
    model = json.loads((folder / "tokenizer.json").read_text(encoding="utf-8"))["model"]
    _write_json(folder / "vocab.json", model["vocab"])
    merges = [merge if isinstance(merge, str) else " ".join(merge) for merge in model["merges"]]
    (folder / "merges.txt").write_text("#version: 0.2\n" + "\n".join(merges) + "\n", encoding="utf-8")


def _write_json(path: Path, content: dict[str, Any]) -> None:
    path.write_text(json.dumps(content, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
