"""Which layers are remembered and how many bytes that takes: D7 and G10, for UNets that are not allocated."""

from __future__ import annotations

from functools import lru_cache
from typing import Any

import pytest
import torch
from diffusers import UNet2DConditionModel
from rearview.engine.memory.bank.layers import BankLayout, KeptOutputs
from rearview.engine.networks.attention.processors import install_processors

pytestmark = pytest.mark.unit

MIB = 1 << 20
STABLE_DIFFUSION_1_5: dict[str, Any] = {"cross_attention_dim": 768, "attention_head_dim": 8}
SD_TURBO: dict[str, Any] = {
    "cross_attention_dim": 1024,
    "attention_head_dim": (5, 10, 20, 20),
    "use_linear_projection": True,
}
SDXL: dict[str, Any] = {
    "block_out_channels": (320, 640, 1280),
    "down_block_types": ("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
    "up_block_types": ("CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"),
    "transformer_layers_per_block": (1, 2, 10),
    "attention_head_dim": (5, 10, 20),
    "cross_attention_dim": 2048,
    "use_linear_projection": True,
}
NO_MIDDLE: dict[str, Any] = {
    **STABLE_DIFFUSION_1_5,
    "mid_block_type": None,
    "layers_per_block": 1,
    "block_out_channels": (320, 640, 1280),
    "down_block_types": ("CrossAttnDownBlock2D",) * 3,
    "up_block_types": ("CrossAttnUpBlock2D",) * 3,
}


@lru_cache
def layout_of(name: str) -> BankLayout:
    config = {"sd15": STABLE_DIFFUSION_1_5, "turbo": SD_TURBO, "sdxl": SDXL, "no_middle": NO_MIDDLE}[name]
    with torch.device("meta"):
        return install_processors(UNet2DConditionModel(**config))


@pytest.mark.parametrize(
    ("name", "layers", "fusing"), [("sd15", 16, 4), ("turbo", 16, 4), ("sdxl", 70, 4), ("no_middle", 9, 2)]
)
def test_d7_layers_of_known_topologies(name: str, layers: int, fusing: int) -> None:
    layout = layout_of(name)
    assert len(layout.layers) == layers
    assert sum(layer.fuses for layer in layout.layers) == fusing


def test_d7_fusing_layers_are_the_middle_and_the_first_up_block_with_attention() -> None:
    blocks = {layer.name.split(".attentions")[0] for layer in layout_of("sd15").layers if layer.fuses}
    assert blocks == {"mid_block", "up_blocks.1"}
    blocks = {layer.name.split(".attentions")[0] for layer in layout_of("sdxl").layers if layer.fuses}
    assert blocks == {"mid_block", "up_blocks.0"}


def test_of_a_transformer_with_many_blocks_the_last_one_fuses() -> None:
    """As often as in Stable Diffusion 1.5, whose transformers have one."""
    names = [layer.name for layer in layout_of("sdxl").layers if layer.fuses]
    assert names == [
        "mid_block.attentions.0.transformer_blocks.9.attn1",
        *(f"up_blocks.0.attentions.{i}.transformer_blocks.9.attn1" for i in range(3)),
    ]


def test_tokens_and_channels_of_stable_diffusion_1_5() -> None:
    sizes = [(layer.tokens(64, 64), layer.key_channels) for layer in layout_of("sd15").layers]
    down = [(4096, 320)] * 2 + [(1024, 640)] * 2 + [(256, 1280)] * 2
    up = [(256, 1280)] * 3 + [(1024, 640)] * 3 + [(4096, 320)] * 3
    assert sizes == [*down, (64, 1280), *up]


@pytest.mark.parametrize(
    ("kept", "expected"),
    [(KeptOutputs.ALL, 69_304_320), (KeptOutputs.FUSED, 48_332_800), (KeptOutputs.NONE, 46_202_880)],
)
def test_g10_bytes_of_one_row_of_stable_diffusion_1_5_at_512(kept: KeptOutputs, expected: int) -> None:
    assert layout_of("sd15").bytes_per_row(64, 64, torch.float16, kept_outputs=kept) == expected


@pytest.mark.parametrize(("height", "width", "mib"), [(256, 256, 16.5), (768, 768, 148.7), (512, 912, 118.1)])
def test_g10_bytes_scale_with_the_area(height: int, width: int, mib: float) -> None:
    size = height // 8, width // 8
    found = layout_of("sd15").bytes_per_row(*size, torch.float16, kept_outputs=KeptOutputs.ALL)
    assert found / MIB == pytest.approx(mib, abs=0.15)


def test_g10_a_queue_of_four_frames_at_four_steps() -> None:
    layout = layout_of("sd15")
    row = layout.bytes_per_row(64, 64, torch.float16, size_frames=4, kept_outputs=KeptOutputs.NONE)
    assert 4 * row / MIB == pytest.approx(705, abs=0.5)


def test_g10_keys_and_values_of_sdxl() -> None:
    layout = layout_of("sdxl")
    at_1024 = layout.bytes_per_row(128, 128, torch.float16, kept_outputs=KeptOutputs.NONE)
    at_512 = layout.bytes_per_row(64, 64, torch.float16, kept_outputs=KeptOutputs.NONE)
    assert (at_1024 / MIB, at_512 / MIB) == pytest.approx((400, 100), abs=0.5)
    assert at_1024 == 419_430_400
    with_outputs = layout.bytes_per_row(128, 128, torch.float16, kept_outputs=KeptOutputs.FUSED)
    assert with_outputs == 429_916_160


@pytest.mark.parametrize("size", [(8, 8), (6, 10), (5, 7), (9, 4)])
def test_tokens_are_those_that_the_unet_really_has(size: tuple[int, int]) -> None:
    torch.manual_seed(0)
    unet = UNet2DConditionModel(
        block_out_channels=(8, 8, 8),
        layers_per_block=1,
        down_block_types=("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
        up_block_types=("CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"),
        cross_attention_dim=8,
        attention_head_dim=4,
        norm_num_groups=4,
    )
    layout = install_processors(unet)
    seen: dict[str, int] = {}
    for layer in layout.layers:
        module = unet.get_submodule(layer.name)
        module.to_k.register_forward_hook(
            lambda _, __, keys, name=layer.name: seen.update({name: keys.shape[1]})
        )
    with torch.inference_mode():
        unet(torch.zeros(1, 4, *size), 1, torch.zeros(1, 2, 8))
    assert {layer.name: layer.tokens(*size) for layer in layout.layers} == seen


def test_a_block_whose_first_attention_reads_the_prompt_is_not_remembered() -> None:
    with torch.device("meta"):
        unet = UNet2DConditionModel(**STABLE_DIFFUSION_1_5, only_cross_attention=(True, False, False, False))
    names = [layer.name.split(".attentions")[0] for layer in install_processors(unet).layers]
    assert "down_blocks.0" not in names
    assert names.count("down_blocks.1") == 2
