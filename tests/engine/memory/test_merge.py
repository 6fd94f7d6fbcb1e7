"""Dynamic merging by itself: invariants F1 to F7.

Tokens that are rows of an identity matrix turn a merge inside out: each merged token then spells the
weights that every input token has in it.
"""

from __future__ import annotations

import pytest
import torch
from rearview.contract.memories import BankPolicy, BankSettings
from rearview.engine.memory.bank import merge
from rearview.engine.memory.bank.layers import capacity_tokens
from rearview.engine.memory.bank.merge import (
    bank_tokens,
    max_bank_tokens,
    merge_tokens,
    num_sources,
    permutation,
)
from torch import Tensor

pytestmark = pytest.mark.unit

TOKENS = 32


def draw(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def identity(union: int) -> Tensor:
    return torch.eye(union, dtype=torch.float64)[None]


def weights_of(ratio: float = 0.5, seed: int = 0) -> tuple[Tensor, Tensor]:
    """(D, U) weights of each input in each output, and the permutation of a merge of random tokens."""
    order = permutation(seed, 0, 0, 0, 2 * TOKENS)[None]
    sources = num_sources(2 * TOKENS, ratio)
    (merged,) = merge_tokens([identity(2 * TOKENS)], draw(1, 2 * TOKENS, 8, seed=seed), order, sources)
    return merged[0], order[0]


def test_f1_half_merged_away_keeps_the_size_at_every_write() -> None:
    assert [bank_tokens(BankSettings(), 4096, writes) for writes in range(6)] == [0] + [4096] * 5


@pytest.mark.parametrize(("ratio", "limit"), [(0.25, 3 * 4096), (0.75, 4096 // 3), (0.9, 4096 // 9)])
def test_f1_another_ratio_converges_to_its_limit_within_what_is_set_aside(ratio: float, limit: int) -> None:
    settings = BankSettings(merge_ratio=ratio)
    sizes = [bank_tokens(settings, 4096, writes) for writes in range(1, 200)]
    assert abs(sizes[-1] - limit) <= 1
    assert max(sizes) == max_bank_tokens(settings, 4096)
    assert max(sizes) <= capacity_tokens(4096, settings.size_frames)


@pytest.mark.parametrize("tokens", [1, 15, 64, 255, 1024])
def test_what_is_set_aside_suffices_for_every_ratio(tokens: int) -> None:
    for percent in range(10, 91):
        settings = BankSettings(merge_ratio=percent / 100)
        assert max_bank_tokens(settings, tokens) <= capacity_tokens(tokens, settings.size_frames)


def test_a_queue_grows_to_its_number_of_frames() -> None:
    settings = BankSettings(policy=BankPolicy.QUEUE, max_frames=3)
    assert [bank_tokens(settings, 64, writes) for writes in range(6)] == [0, 64, 128, 192, 192, 192]


def test_f2_each_merged_token_is_a_convex_combination() -> None:
    weights, _ = weights_of()
    assert weights.shape == (TOKENS, 2 * TOKENS)
    assert (weights >= 0).all()
    torch.testing.assert_close(weights.sum(1), torch.ones(TOKENS, dtype=torch.float64))


def test_f2_equal_tokens_are_unchanged() -> None:
    tokens = draw(1, 1, 8).expand(2, 2 * TOKENS, 8)
    order = torch.stack([permutation(0, 0, 0, n, 2 * TOKENS) for n in range(2)])
    (merged,) = merge_tokens([tokens], tokens, order, TOKENS)
    torch.testing.assert_close(merged, tokens[:, :TOKENS], rtol=0, atol=1e-14)


def test_f3_keys_values_and_outputs_share_one_assignment() -> None:
    keys = draw(1, 2 * TOKENS, 8)
    tags = identity(2 * TOKENS)
    order = permutation(0, 0, 0, 0, 2 * TOKENS)[None]
    merged = merge_tokens([keys, tags, tags * 10], keys, order, TOKENS)
    torch.testing.assert_close(merged[0], merged[1] @ keys)
    torch.testing.assert_close(merged[2], merged[1] * 10)


@pytest.mark.parametrize("ratio", [0.25, 0.5, 0.75])
def test_f4_every_token_contributes_exactly_once(ratio: float) -> None:
    weights, order = weights_of(ratio)
    assert ((weights > 0).sum(0) == 1).all()
    counts = (weights > 0).sum(1)
    assert int(counts.sum()) == 2 * TOKENS
    torch.testing.assert_close(weights.max(1).values, 1.0 / counts.double())
    destinations = order[num_sources(2 * TOKENS, ratio) :]
    assert (weights[torch.arange(len(weights)), destinations] > 0).all()


def test_each_source_goes_to_its_most_similar_destination() -> None:
    weights, order = weights_of()
    unit = torch.nn.functional.normalize(draw(1, 2 * TOKENS, 8)[0], dim=-1)
    for source in order[:TOKENS]:
        nearest = (unit[order[TOKENS:]] @ unit[source]).argmax()
        assert weights[nearest, source] > 0


def test_f5_an_exact_copy_merges_with_its_twin_and_leaves_the_bank_as_it_was() -> None:
    bank = draw(1, TOKENS, 8)
    new_first = torch.cat([torch.arange(TOKENS, 2 * TOKENS), torch.arange(TOKENS)])[None]
    (merged,) = merge_tokens(
        [torch.cat([bank, bank], dim=1)], torch.cat([bank, bank], dim=1), new_first, TOKENS
    )
    torch.testing.assert_close(merged, bank, rtol=0, atol=1e-15)


def test_f6_a_row_merges_the_same_whoever_shares_its_batch() -> None:
    tokens = draw(5, 2 * TOKENS, 8)
    orders = torch.stack([permutation(7, 1, 2, n, 2 * TOKENS) for n in range(5)])
    (together,) = merge_tokens([tokens], tokens, orders, TOKENS)
    for row in range(5):
        (alone,) = merge_tokens([tokens[row : row + 1]], tokens[row : row + 1], orders[row : row + 1], TOKENS)
        torch.testing.assert_close(together[row : row + 1], alone, rtol=0, atol=1e-14)


def test_f6_the_permutation_depends_on_its_counters_alone() -> None:
    torch.manual_seed(1)
    first = permutation(3, 1, 2, 40, 128)
    torch.manual_seed(2)
    assert torch.equal(permutation(3, 1, 2, 40, 128), first)
    others = [(4, 1, 2, 40), (3, 0, 2, 40), (3, 1, 3, 40), (3, 1, 2, 44)]
    assert not any(torch.equal(permutation(*key, 128), first) for key in others)
    assert sorted(first.tolist()) == list(range(128))


def test_f7_about_half_of_the_old_mass_survives_a_write() -> None:
    """Share of the older tokens in the merged bank, over random splits of similar frames."""
    shares = []
    for seed in range(20):
        old = draw(1, TOKENS, 8, seed=seed)
        union = torch.cat([old, old + 0.3 * draw(1, TOKENS, 8, seed=100 + seed)], dim=1)
        age = torch.cat([torch.ones(1, TOKENS, 1), torch.zeros(1, TOKENS, 1)], dim=1).double()
        order = permutation(seed, 0, 0, 0, 2 * TOKENS)[None]
        shares.append(float(merge_tokens([age], union, order, TOKENS)[0].mean()))
    assert abs(sum(shares) / len(shares) - 0.5) <= 0.05


def test_scores_in_chunks_give_the_same_merge(monkeypatch: pytest.MonkeyPatch) -> None:
    tokens = draw(2, 2 * TOKENS, 8)
    order = torch.stack([permutation(0, 0, 0, n, 2 * TOKENS) for n in range(2)])
    (whole,) = merge_tokens([tokens], tokens, order, TOKENS)
    monkeypatch.setattr(merge, "SCORES_PER_CHUNK", 3 * 2 * TOKENS)
    (chunked,) = merge_tokens([tokens], tokens, order, TOKENS)
    torch.testing.assert_close(chunked, whole, rtol=0, atol=1e-14)


def test_half_types_are_averaged_in_float32() -> None:
    """300 tokens of 1000 in one destination: their sum, 300 000, is beyond float16."""
    tokens = torch.full((1, 301, 4), 1000.0, dtype=torch.float16)
    (merged,) = merge_tokens([tokens], tokens, torch.arange(301)[None], 300)
    assert merged.dtype is torch.float16
    assert (merged == 1000.0).all()
