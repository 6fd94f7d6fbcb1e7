"""The architecture of the pocket checkpoint: ordinary diffusers and transformers classes, small numbers.

Nothing here is trained. ``LATENT_STD`` is the one unusual choice: latents are diffused at a standard
deviation of four instead of one, so that a step at t = 399 still sees most of the picture and the small
denoiser need not invent it.
"""

from __future__ import annotations

from typing import Any

import torch
from diffusers import AutoencoderTiny, LCMScheduler, UNet2DConditionModel
from torch import nn
from transformers import CLIPTextConfig, CLIPTextModel

LATENT_CHANNELS = 32
LATENT_STD = 4.0  # of the diffused latent; the raw latent has unit deviation, so this is the scaling factor
REDUCTION = 8  # pixels per latent
TEXT_WIDTH = 64
TEXT_LENGTH = 32  # tokens

_VAE_WIDTH = 48  # the decoder of this class cannot change width between stages
_RESIDUAL_GAIN = 0.3  # on the last convolution of each block: residuals start small


def build_vae() -> AutoencoderTiny:
    """An autoencoder with no block at full resolution, where most of the time would go."""
    vae = AutoencoderTiny(
        encoder_block_out_channels=(_VAE_WIDTH,) * 4,
        decoder_block_out_channels=(_VAE_WIDTH,) * 4,
        num_encoder_blocks=(0, 1, 3, 6),
        num_decoder_blocks=(6, 3, 1, 0),
        latent_channels=LATENT_CHANNELS,
        scaling_factor=LATENT_STD,
    )
    for module in vae.modules():
        if isinstance(module, nn.Conv2d):
            nn.init.kaiming_normal_(module.weight, nonlinearity="relu")
            if module.bias is not None:
                nn.init.zeros_(module.bias)
    for module in vae.modules():
        if type(module).__name__ == "AutoencoderTinyBlock":
            module.conv[-1].weight.data.mul_(_RESIDUAL_GAIN)
    last: Any = vae.decoder.layers[-1]
    last.weight.data.mul_(0.1)
    last.bias.data.fill_(0.5)
    vae.encoder.layers[-1].weight.data.mul_(0.7)
    return vae


def build_unet() -> UNet2DConditionModel:
    """Three levels, one layer per block; attention on the two finer levels and in the middle.

    The time embedding scales as well as shifts: the noise to predict grows steeply towards small t, because
    it must cancel the source picture, and a shift alone expresses that badly.
    """
    return UNet2DConditionModel(
        sample_size=32,
        in_channels=LATENT_CHANNELS,
        out_channels=LATENT_CHANNELS,
        down_block_types=("CrossAttnDownBlock2D", "CrossAttnDownBlock2D", "DownBlock2D"),
        up_block_types=("UpBlock2D", "CrossAttnUpBlock2D", "CrossAttnUpBlock2D"),
        block_out_channels=(64, 96, 128),
        layers_per_block=1,
        attention_head_dim=2,
        cross_attention_dim=TEXT_WIDTH,
        norm_num_groups=16,
        resnet_time_scale_shift="scale_shift",
    )


def build_text_encoder(vocabulary: int, *, start: int, end: int) -> CLIPTextModel:
    """Two layers of width 64, trained with the denoiser from random weights."""
    return CLIPTextModel(
        CLIPTextConfig(
            vocab_size=vocabulary,
            hidden_size=TEXT_WIDTH,
            intermediate_size=128,
            projection_dim=TEXT_WIDTH,
            num_hidden_layers=2,
            num_attention_heads=4,
            max_position_embeddings=TEXT_LENGTH,
            bos_token_id=start,
            eos_token_id=end,
            pad_token_id=end,
        )
    )


def build_scheduler() -> LCMScheduler:
    """The noise schedule of Stable Diffusion with the step grid of latent consistency models."""
    return LCMScheduler(
        beta_start=0.00085,
        beta_end=0.012,
        beta_schedule="scaled_linear",
        num_train_timesteps=1000,
        original_inference_steps=50,
        prediction_type="v_prediction",
        clip_sample=False,
        set_alpha_to_one=True,
        steps_offset=1,
    )


def noise_levels(device: torch.device) -> tuple[torch.Tensor, torch.Tensor]:
    """Signal and noise factors alpha and beta by timestep, each of 1000 values."""
    cumulative = build_scheduler().alphas_cumprod.to(device)
    return cumulative.sqrt(), (1 - cumulative).sqrt()
