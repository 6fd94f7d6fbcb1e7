"""Stable Diffusion XL of its true size, with random weights: it loads, and what it takes is what is said."""

from __future__ import annotations

import gc
import json
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import AutoencoderTiny, UNet2DConditionModel
from rearview.contract.settings import Settings
from rearview.engine.reference.frame import translate_frame
from rearview.engine.weights.checkpoint import load_denoiser, load_vae
from support.tiny import write_tokenizer
from support.tiny_xl import XL_TURBO_SCHEDULER
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTextModelWithProjection

pytestmark = [pytest.mark.load, pytest.mark.timeout(1800)]

CPU = torch.device("cpu")
UNET: dict[str, Any] = {
    "sample_size": 64,
    "block_out_channels": (320, 640, 1280),
    "down_block_types": ("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
    "up_block_types": ("CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"),
    "transformer_layers_per_block": [1, 2, 10],
    "attention_head_dim": [5, 10, 20],
    "cross_attention_dim": 2048,
    "use_linear_projection": True,
    "addition_embed_type": "text_time",
    "addition_time_embed_dim": 256,
    "projection_class_embeddings_input_dim": 2816,
}


def config(width: int, layers: int, heads: int, **more: Any) -> CLIPTextConfig:
    return CLIPTextConfig(
        vocab_size=49408,
        hidden_size=width,
        intermediate_size=4 * width,
        num_hidden_layers=layers,
        num_attention_heads=heads,
        **more,
    )


def write_true_xl(folder: Path) -> Path:
    """7 GB, in bfloat16. One network at a time is in memory."""
    torch.manual_seed(0)
    torch.set_default_dtype(torch.bfloat16)
    try:
        makers = {
            "unet": lambda: UNet2DConditionModel(**UNET),
            "text_encoder": lambda: CLIPTextModel(config(768, 12, 12)),
            "text_encoder_2": lambda: CLIPTextModelWithProjection(
                config(1280, 32, 20, hidden_act="gelu", projection_dim=1280)
            ),
            "vae": AutoencoderTiny,
        }
        for part, make in makers.items():
            make().save_pretrained(folder / part)
            gc.collect()
    finally:
        torch.set_default_dtype(torch.float32)
    for name in ("tokenizer", "tokenizer_2"):
        write_tokenizer(folder / name)
        path = folder / name / "tokenizer_config.json"
        path.write_text(json.dumps({**json.loads(path.read_text()), "model_max_length": 77}))
    (folder / "scheduler").mkdir()
    (folder / "scheduler" / "scheduler_config.json").write_text(json.dumps(XL_TURBO_SCHEDULER))
    return folder


def test_sdxl_turbo_of_its_true_size_loads_and_makes_a_picture(tmp_path: Path) -> None:
    folder = write_true_xl(tmp_path / "xl")
    vae, denoiser = load_vae(folder, CPU, torch.bfloat16), load_denoiser(folder, CPU, torch.bfloat16)
    assert sum(each.numel() for each in denoiser.unet.parameters()) == 2_567_463_684
    layout = denoiser.bank_layout
    assert layout is not None
    assert (len(layout.layers), sum(layer.fuses for layer in layout.layers)) == (70, 4)
    assert layout.bytes_per_row(128, 128, torch.float16) == 429_916_160
    assert denoiser.conditioning.embed("a boat").shape == (1, 78, 2048)
    frame = torch.randint(0, 256, (256, 256, 3), dtype=torch.uint8)
    picture = translate_frame(vae, denoiser, frame, Settings("a", steps=1, strength=0.5), 0, torch.bfloat16)
    assert picture.shape == frame.shape
    assert not torch.equal(picture, frame)
