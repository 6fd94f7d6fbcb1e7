"""Random checkpoints with the layout of Stable Diffusion XL: SDXL's base, SDXL-Turbo and Lightning."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from diffusers import AutoencoderKL, AutoencoderTiny, UNet2DConditionModel
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTextModelWithProjection

from support.tiny import TOKENS, write_tokenizer
from support.tiny_turbo import ANCESTRAL_SCHEDULER, TURBO_SCHEDULER

XL_SCHEDULER = {**TURBO_SCHEDULER, "timestep_spacing": "leading"}
"""As the base's own."""
XL_TURBO_SCHEDULER = ANCESTRAL_SCHEDULER
XL_SCALING = 0.13025
WIDTHS = 24, 32
"""Of the tokens of both text encoders; 768 and 1280 in the published ones."""
POOLED = 20
"""1280 there. Another number than a width, so that nothing may take one for the other."""
SIZE_CHANNELS = 8
"""For each of the six sizes; 256 there."""


def write_tiny_xl(folder: Path, *, kl: bool = False, **scheduler: Any) -> Path:
    """Three levels, the first without attention, two and three transformer blocks in the others; taesdxl, or
    with `kl` the large VAE, which says `force_upcast`.
    """
    torch.manual_seed(3)
    UNet2DConditionModel(
        sample_size=8,
        block_out_channels=(8, 16, 32),
        layers_per_block=1,
        down_block_types=("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
        up_block_types=("CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"),
        transformer_layers_per_block=[1, 2, 3],
        attention_head_dim=[1, 2, 4],
        cross_attention_dim=sum(WIDTHS),
        use_linear_projection=True,
        addition_embed_type="text_time",
        addition_time_embed_dim=SIZE_CHANNELS,
        projection_class_embeddings_input_dim=6 * SIZE_CHANNELS + POOLED,
        norm_num_groups=4,
    ).save_pretrained(folder / "unet")
    for name, network in _text_encoders().items():
        network.save_pretrained(folder / name)
        write_tokenizer(folder / name.replace("text_encoder", "tokenizer"))
    # The published ones differ so: the second one fills up with token 0.
    said = json.loads((folder / "tokenizer_2" / "tokenizer_config.json").read_text())
    (folder / "tokenizer_2" / "tokenizer_config.json").write_text(json.dumps({**said, "pad_token": "!"}))
    vae = _kl() if kl else _tiny()
    vae.save_pretrained(folder / "vae")
    (folder / "scheduler").mkdir()
    config = {**XL_TURBO_SCHEDULER, **scheduler}
    (folder / "scheduler" / "scheduler_config.json").write_text(json.dumps(config))
    (folder / "model_index.json").write_text(json.dumps({"_class_name": "StableDiffusionXLPipeline"}))
    return folder


def _text_encoders() -> dict[str, torch.nn.Module]:
    def config(width: int, **more: Any) -> CLIPTextConfig:
        return CLIPTextConfig(
            vocab_size=300,
            hidden_size=width,
            intermediate_size=32,
            num_hidden_layers=3,
            num_attention_heads=2,
            max_position_embeddings=TOKENS,
            bos_token_id=0,
            eos_token_id=1,
            **more,
        )

    first, second = WIDTHS
    return {
        "text_encoder": CLIPTextModel(config(first, projection_dim=first)),
        "text_encoder_2": CLIPTextModelWithProjection(
            config(second, hidden_act="gelu", projection_dim=POOLED)
        ),
    }


def _kl() -> AutoencoderKL:
    return AutoencoderKL(
        block_out_channels=(8, 8, 8, 8),
        down_block_types=("DownEncoderBlock2D",) * 4,
        up_block_types=("UpDecoderBlock2D",) * 4,
        norm_num_groups=4,
        sample_size=64,
        scaling_factor=XL_SCALING,
        force_upcast=True,
    )


def _tiny() -> AutoencoderTiny:
    return AutoencoderTiny(
        encoder_block_out_channels=(8, 8, 8, 8),
        decoder_block_out_channels=(8, 8, 8, 8),
        num_encoder_blocks=(1, 1, 1, 1),
        num_decoder_blocks=(1, 1, 1, 1),
    )
