"""Random checkpoints with the layout of published ones: SD-Turbo, and LCM's own weights."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from diffusers import AutoencoderTiny, UNet2DConditionModel
from transformers import CLIPTextConfig, CLIPTextModel

from support.tiny import SCHEDULER, TOKENS, write_tokenizer

TURBO_SCHEDULER: dict[str, Any] = {
    "_class_name": "EulerDiscreteScheduler",
    "beta_start": 0.00085,
    "beta_end": 0.012,
    "beta_schedule": "scaled_linear",
    "clip_sample": False,
    "interpolation_type": "linear",
    "num_train_timesteps": 1000,
    "prediction_type": "epsilon",
    "set_alpha_to_one": False,
    "steps_offset": 1,
    "timestep_spacing": "trailing",
    "trained_betas": None,
    "use_karras_sigmas": False,
}
"""As SD-Turbo's own, with all that diffusers does not read."""
ANCESTRAL_SCHEDULER = {**TURBO_SCHEDULER, "_class_name": "EulerAncestralDiscreteScheduler"}
"""As SDXL-Turbo's own."""
TURBO_WIDTH = 1024
"""Of OpenCLIP ViT-H: what the UNet's cross attention takes."""
LCM_WIDTH = 24


def write_tiny_turbo(folder: Path, **scheduler: Any) -> Path:
    """SD-Turbo with TAESD: four levels, heads as a list, linear projections, a text encoder 1024 wide."""
    torch.manual_seed(0)
    _unet(TURBO_WIDTH, attention_head_dim=[1, 2, 4, 4], use_linear_projection=True).save_pretrained(
        folder / "unet"
    )
    _text_encoder(TURBO_WIDTH, heads=16, layers=2, hidden_act="gelu").save_pretrained(folder / "text_encoder")
    return _rest(folder, {**TURBO_SCHEDULER, **scheduler})


def write_tiny_lcm(folder: Path, *, scale: bool = True) -> Path:
    """LCM Dreamshaper: a UNet that is conditioned on the scale of guidance; without it Stable Diffusion 1.5
    for LCM's LoRA.
    """
    torch.manual_seed(1)
    unet = _unet(LCM_WIDTH, attention_head_dim=2, time_cond_proj_dim=32 if scale else None)
    if scale:  # Diffusers starts it at small values: the scale must be seen in the pictures of a test.
        torch.nn.init.normal_(unet.time_embedding.cond_proj.weight, std=0.3)
    unet.save_pretrained(folder / "unet")
    _text_encoder(LCM_WIDTH, heads=2, layers=1).save_pretrained(folder / "text_encoder")
    return _rest(folder, SCHEDULER)


def _unet(width: int, **more: Any) -> UNet2DConditionModel:
    return UNet2DConditionModel(
        sample_size=8,
        block_out_channels=(8, 16, 32, 32),
        layers_per_block=1,
        down_block_types=(*["CrossAttnDownBlock2D"] * 3, "DownBlock2D"),
        up_block_types=("UpBlock2D", *["CrossAttnUpBlock2D"] * 3),
        cross_attention_dim=width,
        norm_num_groups=4,
        **more,
    )


def _text_encoder(width: int, *, heads: int, layers: int, **more: Any) -> CLIPTextModel:
    return CLIPTextModel(
        CLIPTextConfig(
            vocab_size=300,
            hidden_size=width,
            intermediate_size=32,
            num_hidden_layers=layers,
            num_attention_heads=heads,
            max_position_embeddings=TOKENS,
            bos_token_id=0,
            eos_token_id=1,
            **more,
        )
    )


def _rest(folder: Path, scheduler: dict[str, Any]) -> Path:
    AutoencoderTiny(
        encoder_block_out_channels=(8, 8, 8, 8),
        decoder_block_out_channels=(8, 8, 8, 8),
        num_encoder_blocks=(1, 1, 1, 1),
        num_decoder_blocks=(1, 1, 1, 1),
    ).save_pretrained(folder / "vae")
    write_tokenizer(folder / "tokenizer")
    (folder / "scheduler").mkdir()
    (folder / "scheduler" / "scheduler_config.json").write_text(json.dumps(scheduler))
    return folder
