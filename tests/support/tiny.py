"""A tiny random checkpoint in diffusers folder format, and models over it."""

from __future__ import annotations

import json
from pathlib import Path

import torch
from diffusers import AutoencoderTiny, UNet2DConditionModel
from rearview.contract.chain import Span, chain
from rearview.contract.session import SessionSpec
from rearview.contract.settings import Settings
from tokenizers.pre_tokenizers import ByteLevel
from transformers import CLIPTextConfig, CLIPTextModel

SIZE = 64
LATENT_CHANNELS = 6
TOKENS = 12
SCHEDULER = {
    "_class_name": "LCMScheduler",
    "beta_start": 0.00085,
    "beta_end": 0.012,
    "beta_schedule": "scaled_linear",
    "num_train_timesteps": 1000,
    "original_inference_steps": 50,
    "prediction_type": "epsilon",
    "clip_sample": False,
    "set_alpha_to_one": True,
}


def write_tiny_checkpoint(folder: Path, seed: int = 0) -> Path:
    """Write random weights: 6 latent channels and 12 tokens, so that nothing may assume 4 and 77."""
    torch.manual_seed(seed)
    AutoencoderTiny(
        encoder_block_out_channels=(8, 8, 8, 8),
        decoder_block_out_channels=(8, 8, 8, 8),
        latent_channels=LATENT_CHANNELS,
        num_encoder_blocks=(1, 1, 1, 1),
        num_decoder_blocks=(1, 1, 1, 1),
        scaling_factor=1.3,
    ).save_pretrained(folder / "vae")
    UNet2DConditionModel(
        sample_size=SIZE // 8,
        in_channels=LATENT_CHANNELS,
        out_channels=LATENT_CHANNELS,
        block_out_channels=(16, 32),
        layers_per_block=1,
        down_block_types=("CrossAttnDownBlock2D", "DownBlock2D"),
        up_block_types=("UpBlock2D", "CrossAttnUpBlock2D"),
        cross_attention_dim=24,
        attention_head_dim=2,
        norm_num_groups=4,
    ).save_pretrained(folder / "unet")
    CLIPTextModel(
        CLIPTextConfig(
            vocab_size=300,
            hidden_size=24,
            intermediate_size=32,
            num_hidden_layers=1,
            num_attention_heads=2,
            max_position_embeddings=TOKENS,
            bos_token_id=0,
            eos_token_id=1,
        )
    ).save_pretrained(folder / "text_encoder")
    write_tokenizer(folder / "tokenizer")
    (folder / "scheduler").mkdir()
    (folder / "scheduler" / "scheduler_config.json").write_text(json.dumps(SCHEDULER))
    return folder


def write_tokenizer(folder: Path) -> None:
    """300 tokens: the bytes, and the bytes that end a word."""
    folder.mkdir(parents=True)
    letters = sorted(ByteLevel.alphabet())
    tokens = ["<|startoftext|>", "<|endoftext|>", *letters[:149], *(f"{x}</w>" for x in letters[:149])]
    (folder / "vocab.json").write_text(json.dumps({token: i for i, token in enumerate(tokens)}))
    (folder / "merges.txt").write_text("#version: 0.2\n")
    config = {
        "tokenizer_class": "CLIPTokenizer",
        "model_max_length": TOKENS,
        "pad_token": "<|endoftext|>",
        "unk_token": "<|endoftext|>",
        "bos_token": "<|startoftext|>",
        "eos_token": "<|endoftext|>",
    }
    (folder / "tokenizer_config.json").write_text(json.dumps(config))


def whole_chain(max_steps: int = 2) -> Span:
    """The span of topology `fused`."""
    return Span("fused", chain(max_steps))


def session(
    session_id: str, settings: Settings | None = None, *, max_steps: int = 2, tenant: str = "t"
) -> SessionSpec:
    """A session of the tiny model's size."""
    return SessionSpec(session_id, SIZE, SIZE, max_steps, settings or Settings(prompt="a"), tenant=tenant)


def random_frames(count: int, seed: int = 0) -> list[torch.Tensor]:
    """Random uint8 frames (SIZE, SIZE, 3)."""
    generator = torch.Generator().manual_seed(seed)
    return list(torch.randint(0, 256, (count, SIZE, SIZE, 3), generator=generator, dtype=torch.uint8))
