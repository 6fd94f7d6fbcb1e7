"""A diffusers checkpoint as one file in the original Stable Diffusion layout, as published files are."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from pathlib import Path

import torch
from diffusers import AutoencoderKL
from safetensors.torch import load_file, save_file

from support.tiny import LATENT_CHANNELS

Weights = dict[str, torch.Tensor]
_Rule = tuple[str, str | Callable[[re.Match[str]], str]]


def write_tiny_kl(folder: Path, seed: int = 0) -> Path:
    """Replace a tiny checkpoint's VAE by a tiny AutoencoderKL, of which the original layout knows."""
    torch.manual_seed(seed)
    for file in (folder / "vae").iterdir():
        file.unlink()
    AutoencoderKL(
        block_out_channels=(8, 8, 8, 8),
        down_block_types=("DownEncoderBlock2D",) * 4,
        up_block_types=("UpDecoderBlock2D",) * 4,
        latent_channels=LATENT_CHANNELS,
        norm_num_groups=4,
        sample_size=64,
    ).save_pretrained(folder / "vae")
    return folder


def write_single_xl(folder: Path, file: Path) -> Path:
    """The same of Stable Diffusion XL, whose second text encoder is of OpenCLIP."""
    weights = {
        **_prefixed("model.diffusion_model.", _unet(_read(folder / "unet"))),
        **_prefixed("first_stage_model.", _vae(_read(folder / "vae"))),
        **_prefixed("conditioner.embedders.0.transformer.", _text(_read(folder / "text_encoder"))),
        **_prefixed("conditioner.embedders.1.model.", _open_clip(_read(folder / "text_encoder_2"))),
    }
    return _written(weights, file)


def write_single_file(folder: Path, file: Path) -> Path:
    """The weights of a folder's networks in one file: .safetensors, or a pickle under `state_dict`."""
    weights = {
        **_prefixed("model.diffusion_model.", _unet(_read(folder / "unet"))),
        **_prefixed("first_stage_model.", _vae(_read(folder / "vae"))),
        **_prefixed("cond_stage_model.transformer.", _text(_read(folder / "text_encoder"))),
        "alphas_cumprod": torch.ones(10),  # Training's, which real files also hold.
    }
    return _written(weights, file)


def _written(weights: Weights, file: Path) -> Path:
    if file.suffix == ".safetensors":
        save_file({key: value.contiguous() for key, value in weights.items()}, file)
    else:
        torch.save({"state_dict": weights, "global_step": 1}, file)
    return file


def _read(folder: Path) -> Weights:
    (file,) = folder.glob("*.safetensors")
    return load_file(file)


def _prefixed(prefix: str, weights: Weights) -> Weights:
    return {prefix + key: value for key, value in weights.items()}


def _renamed(weights: Weights, rules: Sequence[_Rule]) -> Weights:
    renamed = {}
    for key, value in weights.items():
        for pattern, name in rules:
            key = re.sub(pattern, name, key)
        renamed[key] = value
    return renamed


def _unet(weights: Weights) -> Weights:
    per_block = 1 + max(
        int(n) for key in weights for n in re.findall(r"^down_blocks\.0\.resnets\.(\d+)", key)
    )
    rows = per_block + 1  # Of the original's flat list per block: the resnets and the change of size.

    def up(match: re.Match[str]) -> str:
        block = int(match[1])
        attends = any(key.startswith(f"up_blocks.{block}.attentions") for key in weights)
        return f"output_blocks.{block * rows + per_block}.{1 + attends}.conv"

    return _renamed(
        weights,
        (
            (r"(resnets\.\d+)\.norm1", r"\1.in_layers.0"),
            (r"(resnets\.\d+)\.conv1", r"\1.in_layers.2"),
            (r"(resnets\.\d+)\.norm2", r"\1.out_layers.0"),
            (r"(resnets\.\d+)\.conv2", r"\1.out_layers.3"),
            (r"(resnets\.\d+)\.time_emb_proj", r"\1.emb_layers.1"),
            (r"(resnets\.\d+)\.conv_shortcut", r"\1.skip_connection"),
            (r"^time_embedding\.linear_1", "time_embed.0"),
            (r"^time_embedding\.linear_2", "time_embed.2"),
            (r"^conv_in", "input_blocks.0.0"),
            (r"^add_embedding\.linear_1", "label_emb.0.0"),
            (r"^add_embedding\.linear_2", "label_emb.0.2"),
            (r"^conv_norm_out", "out.0"),
            (r"^conv_out", "out.2"),
            (
                r"^down_blocks\.(\d+)\.resnets\.(\d+)",
                lambda m: f"input_blocks.{1 + int(m[1]) * rows + int(m[2])}.0",
            ),
            (
                r"^down_blocks\.(\d+)\.attentions\.(\d+)",
                lambda m: f"input_blocks.{1 + int(m[1]) * rows + int(m[2])}.1",
            ),
            (
                r"^down_blocks\.(\d+)\.downsamplers\.0\.conv",
                lambda m: f"input_blocks.{(int(m[1]) + 1) * rows}.0.op",
            ),
            (r"^mid_block\.resnets\.0", "middle_block.0"),
            (r"^mid_block\.attentions\.0", "middle_block.1"),
            (r"^mid_block\.resnets\.1", "middle_block.2"),
            (
                r"^up_blocks\.(\d+)\.resnets\.(\d+)",
                lambda m: f"output_blocks.{int(m[1]) * rows + int(m[2])}.0",
            ),
            (
                r"^up_blocks\.(\d+)\.attentions\.(\d+)",
                lambda m: f"output_blocks.{int(m[1]) * rows + int(m[2])}.1",
            ),
            (r"^up_blocks\.(\d+)\.upsamplers\.0\.conv", up),
        ),
    )


def _vae(weights: Weights) -> Weights:
    blocks = 1 + max(int(n) for key in weights for n in re.findall(r"up_blocks\.(\d+)", key))
    renamed = _renamed(
        weights,
        (
            (r"down_blocks\.(\d+)\.resnets", r"down.\1.block"),
            (r"down_blocks\.(\d+)\.downsamplers\.0", r"down.\1.downsample"),
            (r"up_blocks\.(\d+)\.resnets", lambda m: f"up.{blocks - 1 - int(m[1])}.block"),
            (r"up_blocks\.(\d+)\.upsamplers\.0", lambda m: f"up.{blocks - 1 - int(m[1])}.upsample"),
            (r"mid_block\.resnets\.(\d)", lambda m: f"mid.block_{int(m[1]) + 1}"),
            (r"mid_block\.attentions\.0\.group_norm", "mid.attn_1.norm"),
            (r"mid_block\.attentions\.0\.to_([qkv])", r"mid.attn_1.\1"),
            (r"mid_block\.attentions\.0\.to_out\.0", "mid.attn_1.proj_out"),
            (r"conv_norm_out", "norm_out"),
            (r"conv_shortcut", "nin_shortcut"),
        ),
    )
    is_attention = re.compile(r"attn_1\.(q|k|v|proj_out)\.weight$")
    return {
        key: value[:, :, None, None] if is_attention.search(key) else value for key, value in renamed.items()
    }


def _text(weights: Weights) -> Weights:
    named = {"text_model." + key.removeprefix("text_model."): value for key, value in weights.items()}
    positions = named["text_model.embeddings.position_embedding.weight"].shape[0]
    return {**named, "text_model.embeddings.position_ids": torch.arange(positions)[None]}


def _open_clip(weights: Weights) -> Weights:
    """Queries, keys and values lie in one there, and the projection the other way round."""
    renamed = _renamed(
        weights,
        (
            (r"^text_model\.", ""),
            (r"^embeddings\.position_embedding\.weight", "positional_embedding"),
            (r"^embeddings\.token_embedding", "token_embedding"),
            (r"^final_layer_norm", "ln_final"),
            (r"^text_projection\.weight", "text_projection"),
            (r"^encoder\.layers\.", "transformer.resblocks."),
            (r"\.layer_norm(\d)", r".ln_\1"),
            (r"\.mlp\.fc1", ".mlp.c_fc"),
            (r"\.mlp\.fc2", ".mlp.c_proj"),
            (r"\.self_attn\.", ".attn."),
        ),
    )
    renamed["text_projection"] = renamed["text_projection"].T
    for key in [key for key in renamed if ".attn.q_proj." in key]:
        parts = [renamed.pop(key.replace("q_proj", f"{name}_proj")) for name in "qkv"]
        renamed[key.replace("q_proj.", "in_proj_")] = torch.cat(parts)
    return renamed
