"""Extended self-attention, alone and inside a stock UNet: invariants D1 to D6."""

from __future__ import annotations

import logging
from dataclasses import replace

import pytest
import torch
from diffusers import UNet2DConditionModel
from diffusers.models.attention_processor import AttnProcessor2_0
from rearview.contract.memories import BankPolicy, BankSettings
from rearview.engine.networks.attention import extended
from rearview.engine.networks.attention.extended import Attend, attend_concatenated, attend_segments
from rearview.engine.networks.attention.processors import install_processors
from support.frames import stacked
from support.memories import gather
from support.tiny_bank import (
    Stream,
    advance,
    banked,
    by_reference,
    gap,
    make_row,
    tiny_bank,
    tiny_denoiser,
    video,
)
from torch import Tensor

pytestmark = pytest.mark.unit

ROWS, HEADS, TOKENS, PAST, DIM = 3, 2, 12, 20, 8
BOTH = pytest.mark.parametrize("attend", [attend_concatenated, attend_segments])
TIGHT = 1e-12


def draw(tokens: int, seed: int, scale: float = 2.0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return scale * torch.randn(ROWS, HEADS, tokens, DIM, generator=generator, dtype=torch.float64)


def tensors() -> list[Tensor]:
    """Query, key, value, past key, past value."""
    return [draw(n, seed) for seed, n in enumerate((TOKENS, TOKENS, TOKENS, PAST, PAST))]


def by_definition(query: Tensor, key: Tensor, value: Tensor) -> Tensor:
    return torch.softmax(query @ key.transpose(-1, -2) / DIM**0.5, dim=-1) @ value


def some_mask() -> Tensor:
    """Row 0 sees everything, row 1 its first seven tokens, row 2 nothing."""
    return torch.arange(PAST)[None, :] < torch.tensor([PAST, 7, 0])[:, None]


@BOTH
def test_out_is_softmax_over_present_and_remembered_tokens(attend: Attend) -> None:
    query, key, value, past_key, past_value = tensors()
    expected = by_definition(query, torch.cat([key, past_key], 2), torch.cat([value, past_value], 2))
    out = attend(query, key, value, past_key, past_value, None)
    torch.testing.assert_close(out, expected, rtol=0, atol=TIGHT)


@BOTH
def test_d1_rows_without_a_past_are_plain_beside_rows_with_one(attend: Attend) -> None:
    query, key, value, past_key, past_value = tensors()
    out = attend(query, key, value, past_key, past_value, some_mask())
    torch.testing.assert_close(out[2], by_definition(query, key, value)[2], rtol=0, atol=TIGHT)
    for row, seen in ((0, PAST), (1, 7)):
        keys = torch.cat([key, past_key[:, :, :seen]], 2)
        values = torch.cat([value, past_value[:, :, :seen]], 2)
        torch.testing.assert_close(out[row], by_definition(query, keys, values)[row], rtol=0, atol=TIGHT)


@BOTH
def test_d2_a_past_equal_to_the_present_in_any_order_changes_nothing(attend: Attend) -> None:
    query, key, value, *_ = tensors()
    order = torch.randperm(TOKENS, generator=torch.Generator().manual_seed(0))
    out = attend(query, key, value, key[:, :, order], value[:, :, order], None)
    torch.testing.assert_close(out, by_definition(query, key, value), rtol=0, atol=TIGHT)


@BOTH
def test_d3_the_order_of_remembered_tokens_is_irrelevant(attend: Attend) -> None:
    query, key, value, past_key, past_value = tensors()
    order = torch.randperm(PAST, generator=torch.Generator().manual_seed(0))
    out = attend(query, key, value, past_key, past_value, some_mask())
    permuted = attend(
        query, key, value, past_key[:, :, order], past_value[:, :, order], some_mask()[:, order]
    )
    torch.testing.assert_close(permuted, out, rtol=0, atol=TIGHT)


@pytest.mark.parametrize("mask", [None, some_mask()])
@pytest.mark.parametrize("kernel", ["fused", "explicit"])
def test_d4_segments_merged_by_log_sum_exp_equal_the_joined_ones(
    mask: Tensor | None, kernel: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    if kernel == "explicit":
        monkeypatch.setattr(extended, "_attend", extended._attend_explicitly)
    plain = attend_concatenated(*tensors(), mask)
    torch.testing.assert_close(attend_segments(*tensors(), mask), plain, rtol=0, atol=TIGHT)


def test_d5_zeros_that_are_not_masked_are_not_an_empty_bank() -> None:
    query, key, value, past_key, past_value = tensors()
    plain = by_definition(query, key, value)
    nothing = torch.zeros(ROWS, PAST, dtype=torch.bool)
    masked = attend_concatenated(query, key, value, past_key * 0, past_value * 0, nothing)
    unmasked = attend_concatenated(query, key, value, past_key * 0, past_value * 0, None)
    torch.testing.assert_close(masked, plain, rtol=0, atol=TIGHT)
    assert (unmasked - plain).abs().max() > 0.05


def small_unet(**changes: object) -> UNet2DConditionModel:
    torch.manual_seed(0)
    return UNet2DConditionModel(
        **{
            "sample_size": 8,
            "block_out_channels": (16, 32),
            "layers_per_block": 1,
            "down_block_types": ("CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
            "up_block_types": ("CrossAttnUpBlock2D", "CrossAttnUpBlock2D"),
            "cross_attention_dim": 24,
            "attention_head_dim": 4,
            "norm_num_groups": 4,
            **changes,
        }
    ).double()


def inputs(unet: UNet2DConditionModel, size: int = 8) -> tuple[Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(1)
    x = torch.randn(2, 4, size, size, generator=generator, dtype=torch.float64)
    prompt = torch.randn(2, 5, 24, generator=generator, dtype=torch.float64)
    return x, torch.tensor([10, 500]), prompt


@torch.inference_mode()
def test_without_a_memory_the_processors_are_the_stock_ones_bit_for_bit() -> None:
    unet = small_unet()
    x, t, prompt = inputs(unet)
    stock = unet(x, t, prompt).sample
    assert install_processors(unet) == install_processors(unet)
    assert torch.equal(unet(x, t, prompt).sample, stock)


class OwnPresent:
    """A memory that holds exactly what the layer sees now, in another order."""

    def __init__(self) -> None:
        self.layers: list[int] = []

    def extend(self, layer: int, key: Tensor, value: Tensor) -> tuple[Tensor, Tensor, None]:
        self.layers.append(layer)
        return key.flip(1), value.flip(1), None

    def fuse(self, layer: int, output: Tensor) -> Tensor:
        return output

    def record(self, layer: int, key: Tensor, value: Tensor, output: Tensor) -> None:
        assert key.shape == value.shape == output.shape


@BOTH
@torch.inference_mode()
def test_d2_a_whole_unet_whose_past_is_its_present_is_unchanged(
    attend: Attend, caplog: pytest.LogCaptureFixture
) -> None:
    unet = small_unet(attention_head_dim=(2, 8))
    x, t, prompt = inputs(unet)
    stock = unet(x, t, prompt).sample
    layout, memory = install_processors(unet, attend), OwnPresent()
    diffusers_log = logging.getLogger("diffusers")
    diffusers_log.addHandler(caplog.handler)
    result = unet(x, t, prompt, cross_attention_kwargs={"memory": memory}).sample
    diffusers_log.removeHandler(caplog.handler)
    torch.testing.assert_close(result, stock, rtol=0, atol=1e-10)
    assert memory.layers == list(range(len(layout.layers)))
    assert caplog.records == [], "diffusers warns of arguments that a processor does not take"


@torch.inference_mode()
def test_d6_cross_attention_is_untouched_by_the_memory() -> None:
    unet = small_unet()
    install_processors(unet)
    cross = unet.mid_block.attentions[0].transformer_blocks[0].attn2
    tokens, prompt = draw(9, 0).reshape(3, 9, 16).repeat(1, 1, 2), draw(5, 1)[:, 0].repeat(1, 1, 3)
    with_memory = cross(tokens, encoder_hidden_states=prompt, memory=OwnPresent())
    cross.set_processor(AttnProcessor2_0())
    assert torch.equal(with_memory, cross(tokens, encoder_hidden_states=prompt))


@pytest.mark.parametrize(
    ("bank", "size_frames"),
    [
        (BankSettings(), 1.0),
        (BankSettings(policy=BankPolicy.QUEUE, max_frames=3), 3.0),
        (BankSettings(merge_ratio=0.3), 2.4),
    ],
)
def test_d1_the_first_frame_of_a_session_is_the_plain_one(bank: BankSettings, size_frames: float) -> None:
    spec = banked("s", bank)
    memory = tiny_bank(1, size_frames=size_frames)
    memory.allocate(spec)
    plain = by_reference(Stream(replace(spec, bank=None), video(1)))
    assert gap(advance(memory, spec, video(1)), plain) <= TIGHT


def test_d5_a_garbled_place_is_never_seen_through_the_mask_or_the_fill() -> None:
    """What lies in a place beyond the bank's tokens has no influence, whatever it is."""
    for bank, size_frames in (
        (BankSettings(), 1.0),
        (BankSettings(policy=BankPolicy.QUEUE, max_frames=2), 2.0),
    ):
        spec = banked("s", bank)
        clean, garbled = (tiny_bank(1, size_frames=size_frames) for _ in range(2))
        for storage in garbled._storage:
            for pool in storage.tensors:
                pool.fill_(50.0)
        for memory in (clean, garbled):
            memory.allocate(spec)
        assert gap(advance(clean, spec, video(4)), advance(garbled, spec, video(4))) == 0.0


@torch.inference_mode()
def test_segments_in_the_unet_equal_the_concatenation_with_a_real_bank() -> None:
    spec = banked("s", BankSettings(policy=BankPolicy.QUEUE, max_frames=2, interval=1))
    denoiser = tiny_denoiser()
    memory = tiny_bank(1, size_frames=2.0)
    memory.allocate(spec)
    advance(memory, spec, video(1))
    row = make_row(spec, video(2)[1], 1)
    outputs = []
    try:
        for attend in (attend_concatenated, attend_segments):
            install_processors(denoiser.unet, attend)
            (left,), _ = denoiser([row.planes], [row], gather(memory, [row]))
            outputs.append(stacked(left))
    finally:
        install_processors(denoiser.unet)
    assert gap(outputs[:1], outputs[1:]) <= 1e-10


def test_a_mask_and_a_memory_exclude_each_other() -> None:
    unet = small_unet()
    install_processors(unet)
    x, t, prompt = inputs(unet)
    with pytest.raises(ValueError, match="exclude"):
        unet(x, t, prompt, attention_mask=torch.ones(2, 64), cross_attention_kwargs={"memory": OwnPresent()})


def test_other_processors_are_refused_rather_than_overwritten() -> None:
    class Foreign(AttnProcessor2_0):
        pass

    unet = small_unet()
    unet.mid_block.attentions[0].transformer_blocks[0].attn2.set_processor(Foreign())
    with pytest.raises(ValueError, match="Foreign"):
        install_processors(unet)
