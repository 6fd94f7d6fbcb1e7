"""Feature fusion: invariants E1 to E7."""

from __future__ import annotations

import math

import pytest
import torch
from rearview.contract.memories import BankPolicy, BankSettings
from rearview.engine.networks.attention.fusion import fuse
from support.memories import exported
from support.tiny_bank import (
    advance,
    banked,
    forward,
    gap,
    make_row,
    tiny_bank,
    tiny_denoiser,
    tiny_model,
    video,
)
from torch import Tensor
from torch.nn import functional as F

pytestmark = pytest.mark.unit

TOKENS, PAST, CHANNELS = 10, 14, 6


def draw(tokens: int, seed: int, rows: int = 1) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(rows, tokens, CHANNELS, generator=generator, dtype=torch.float64)


def fused(
    output: Tensor, past: Tensor, strength: float = 0.8, threshold: float = 0.5, mask: Tensor | None = None
) -> Tensor:
    rows = len(output)
    seen = torch.ones(rows, past.shape[1], dtype=torch.bool) if mask is None else mask
    values = (torch.full((rows,), value, dtype=torch.float64) for value in (strength, threshold))
    return fuse(output, past, seen, *values)


def cosines(output: Tensor, past: Tensor) -> Tensor:
    return F.normalize(output, dim=-1) @ F.normalize(past, dim=-1).transpose(1, 2)


def test_a_token_moves_by_the_strength_towards_its_nearest_match() -> None:
    output, past = draw(TOKENS, 0), draw(PAST, 1)
    result = fused(output, past, strength=0.8, threshold=0.5)
    similarity, nearest = cosines(output, past)[0].max(-1)
    for j in range(TOKENS):
        expected = 0.2 * output[0, j] + 0.8 * past[0, nearest[j]] if similarity[j] >= 0.5 else output[0, j]
        torch.testing.assert_close(result[0, j], expected)
    assert 0 < int((similarity >= 0.5).sum()) < TOKENS


def test_e1_strength_zero_changes_nothing() -> None:
    output = draw(TOKENS, 0)
    assert torch.equal(fused(output, draw(PAST, 1), strength=0.0, threshold=-1.0), output)


def test_e2_a_threshold_above_one_changes_nothing() -> None:
    output = draw(TOKENS, 0)
    assert torch.equal(fused(output, draw(PAST, 1), threshold=1.01), output)


def test_e3_without_threshold_and_at_full_strength_every_token_is_its_nearest_remembered_one() -> None:
    output, past = draw(TOKENS, 0), draw(PAST, 1)
    nearest = cosines(output, past)[0].argmax(-1)
    assert torch.equal(fused(output, past, strength=1.0, threshold=-1.0)[0], past[0, nearest])


def test_e4_a_past_equal_to_the_present_changes_nothing() -> None:
    output = draw(TOKENS, 0)
    order = torch.randperm(TOKENS, generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(fused(output, output[:, order]), output, rtol=0, atol=1e-15)


def test_e5_a_token_exactly_at_the_threshold_is_fused() -> None:
    output = torch.zeros(1, 1, CHANNELS, dtype=torch.float64)
    past = output.clone()
    output[0, 0, :2] = torch.tensor([3.0, 4.0])
    past[0, 0, 0] = 2.0
    at = float(cosines(output, past))
    assert at == pytest.approx(0.6)
    assert torch.equal(fused(output, past, 1.0, at), past)
    assert torch.equal(fused(output, past, 1.0, math.nextafter(at, 1.0)), output)


def test_e6_scaling_a_remembered_token_changes_its_value_and_not_the_choice() -> None:
    output, past = draw(TOKENS, 0), draw(PAST, 1)
    scale = torch.linspace(0.1, 9.0, PAST, dtype=torch.float64)[None, :, None]
    plain, scaled = (fused(output, each, 1.0, -1.0)[0] for each in (past, past * scale))
    nearest = cosines(output, past)[0].argmax(-1)
    torch.testing.assert_close(scaled, plain * scale[0, nearest])


def test_rows_are_fused_each_with_its_own_past_strength_and_threshold() -> None:
    output, past = draw(TOKENS, 0, rows=4), draw(PAST, 1, rows=4)
    mask = torch.ones(4, PAST, dtype=torch.bool)
    mask[1, 5:] = False
    mask[3] = False
    strength = torch.tensor([0.8, 0.5, 0.0, 1.0], dtype=torch.float64)
    threshold = torch.tensor([0.5, -1.0, -1.0, -1.0], dtype=torch.float64)
    together = fuse(output, past, mask, strength, threshold)
    torch.testing.assert_close(together[:1], fused(output[:1], past[:1], 0.8, 0.5))
    torch.testing.assert_close(together[1:2], fused(output[1:2], past[1:2, :5], 0.5, -1.0))
    assert torch.equal(together[2:], output[2:])


def test_an_empty_past_changes_nothing_even_where_tokens_are_parallel() -> None:
    output = torch.linspace(1, 4, TOKENS, dtype=torch.float64)[None, :, None].expand(1, TOKENS, CHANNELS)
    nothing = torch.zeros(1, TOKENS, dtype=torch.bool)
    assert torch.equal(fused(output, output * 0, 1.0, -1.0, nothing), output)


def test_half_precision_keeps_its_type_and_compares_in_float32() -> None:
    output, past = draw(TOKENS, 0), draw(PAST, 1)
    half = fused(output.half(), past.half(), 0.8, 0.5)
    assert half.dtype is torch.float16
    torch.testing.assert_close(half.double(), fused(output, past, 0.8, 0.5), rtol=0, atol=5e-3)


def test_e7_the_stored_output_is_the_unfused_one() -> None:
    bank = BankSettings(policy=BankPolicy.QUEUE, interval=1, fusion_strength=1.0, fusion_threshold=-1.0)
    spec = banked("s", bank, steps=1)
    memory = tiny_bank(1)
    memory.allocate(spec)
    advance(memory, spec, video(1))
    denoiser = tiny_denoiser()
    layout = denoiser.bank_layout
    assert layout is not None
    name = next(layer.name for layer in layout.layers if layer.fuses)
    attention = denoiser.unet.get_submodule(name)
    seen: dict[str, Tensor] = {}
    hooks = [
        attention.to_out[1].register_forward_hook(lambda *args: seen.update(unfused=args[2].clone())),
        attention.register_forward_hook(lambda *args: seen.update(fused=args[2].clone())),
    ]
    forward(memory, [make_row(spec, video(2)[1], 1)])
    for hook in hooks:
        hook.remove()
    stored = exported(memory, "s").layers[0, name][2]
    assert torch.equal(stored, seen["unfused"][0])
    assert gap([stored], [seen["fused"][0]]) > 1e-3


def test_a_bank_without_fusion_leaves_outputs_alone() -> None:
    """Strength 0 and a threshold above 1 are the same session: extended attention only."""
    results = []
    for bank in (BankSettings(fusion_strength=0.0), BankSettings(fusion_threshold=1.5)):
        spec = banked("s", bank)
        memory = tiny_bank(1)
        memory.allocate(spec)
        results.append(advance(memory, spec, video(3)))
    assert gap(results[0], results[1]) == 0.0
    assert tiny_model().layouts.bank is not None
