"""The table of embeddings: what forwards read from it is what the plain path makes, and it stays bounded."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from itertools import pairwise
from typing import Any

import pytest
import torch
from rearview.contract.blending import Mix, mix_at, settings_under
from rearview.contract.settings import AdapterMix, Settings, WeightedPrompt
from rearview.engine.networks import prompts as module
from rearview.engine.networks.conditioning import Conditioning, slerp, slerp_shares
from rearview.engine.networks.denoise import Denoiser
from rearview.engine.networks.prompts import PromptTable, Worded
from support.stand_in_graphs import NoHostSync
from support.tiny import TOKENS
from support.tiny_bank import tiny_denoiser
from torch import Tensor

pytestmark = pytest.mark.unit

TYPES = [torch.float64, torch.float32, torch.bfloat16]
PLAIN = Settings("a", strength=0.6)
BLENDING = settings_under(PLAIN, replace(PLAIN, prompt="b", blend_frames=4), 2)
MIXED = Settings(
    prompts=tuple(WeightedPrompt(text, weight) for text, weight in (("a", 3), ("c", 1), ("d", 2)))
)
AGAIN = settings_under(BLENDING, replace(MIXED, blend_frames=6), 4)
FRAMES = [
    (PLAIN, 0),
    (BLENDING, 2),
    (BLENDING, 3),
    (BLENDING, 9),
    (MIXED, 1),
    (AGAIN, 4),
    (AGAIN, 5),
    (PLAIN, 7),
]
MIXES = [mix_at(*frame) for frame in FRAMES]


class Encoder:
    """Embeddings of any width that remember who asked for them."""

    def __init__(self, tokens: int = 7, width: int = 5, dtype: torch.dtype = torch.float32) -> None:
        self.shape, self.dtype, self.asked = (1, tokens, width), dtype, list[str]()

    def embed(self, prompt: str, adapters: AdapterMix = ()) -> Tensor:
        self.asked.append(prompt)
        generator = torch.Generator().manual_seed(sum(map(ord, prompt)) + len(prompt))
        return torch.randn(self.shape, generator=generator, dtype=torch.float64).to(self.dtype)


def of(*texts: str) -> list[Mix]:
    return [(WeightedPrompt(text, 1.0),) for text in texts]


def read(table: PromptTable, mixes: Sequence[Mix]) -> Tensor:
    return table.read(torch.tensor(table.places([Worded(mix) for mix in mixes])))


@pytest.mark.parametrize("dtype", TYPES)
@pytest.mark.parametrize(("tokens", "width"), [(32, 96), (77, 768), (3, 2)])
def test_what_forwards_read_is_what_the_plain_path_makes(tokens: int, width: int, dtype: torch.dtype) -> None:
    """Blends, mixes of three, and plain prompts, whoever else is in the forward: bit by bit."""
    encoder = Encoder(tokens, width, dtype)
    plain = Conditioning(None, None, dtype)
    plain.embed = encoder.embed  # type: ignore[method-assign]
    wanted = [plain.embed_frame(settings, ordinal) for settings, ordinal in FRAMES]
    together = PromptTable(encoder)
    for _ in range(2):
        assert torch.equal(read(together, MIXES), torch.cat(wanted))
    for mix, each in zip(MIXES, wanted, strict=True):
        assert torch.equal(read(PromptTable(encoder), [mix]), each)
    assert torch.equal(read(together, MIXES[::-1]), torch.cat(wanted[::-1]))


@pytest.mark.parametrize("dtype", TYPES)
def test_turning_rows_together_is_turning_each(dtype: torch.dtype) -> None:
    generator = torch.Generator().manual_seed(0)
    start, end = torch.randn((2, 5, 77, 24), generator=generator, dtype=torch.float64).to(dtype)
    end[:, 3], end[:, 4] = start[:, 3], -start[:, 4]  # Straight lines.
    shares = [0.0, 0.1, 1 / 3, 0.75, 1.0]
    together = slerp_shares(start, end, shares)
    for row, share in enumerate(shares):
        alone = slerp(start[row : row + 1], end[row : row + 1], share)
        assert torch.equal(together[row : row + 1], alone)


def test_all_blends_of_a_forward_are_made_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    counts: list[int] = []

    def counted(start: Tensor, end: Tensor, shares: Sequence[float]) -> Tensor:
        counts.append(len(shares))
        return slerp_shares(start, end, shares)

    monkeypatch.setattr(module, "slerp_shares", counted)
    table = PromptTable(Encoder())
    read(table, MIXES)
    several = [len(mix) for mix in dict.fromkeys(MIXES) if len(mix) > 1]
    assert counts == [sum(count > turn for count in several) for turn in range(1, max(several))]
    read(table, MIXES)
    assert len(counts) == max(several) - 1, "the steps of a frame share its mix"


def test_a_known_prompt_is_not_encoded_again() -> None:
    table = PromptTable(encoder := Encoder())
    for _ in range(3):
        read(table, of("a", "b", "a"))
    assert encoder.asked == ["a", "b"]


def test_the_table_is_bounded_and_the_prompt_goes_that_was_not_used_longest(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(module, "KEPT_PROMPTS", 3)
    table = PromptTable(encoder := Encoder())
    for text in ("a", "b", "c", "a", "d"):
        read(table, of(text))
    read(table, of("a"))  # "b" goes before this one.
    assert table.prompts == {"a", "c", "d"}
    found = {text: read(table, of(text)) for text in "abcd"}
    assert encoder.asked.count("b") == 2
    fresh = Encoder()
    assert all(torch.equal(each, fresh.embed(text)) for text, each in found.items())
    for number in range(100):
        read(table, of(str(number)))
    assert len(table.prompts) <= 4
    assert len(table._rows._storage_RLD) <= 16


def test_a_forward_may_need_more_than_is_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "KEPT_PROMPTS", 2)
    monkeypatch.setattr(module, "KEPT_MIXES", 2)
    texts = [f"p{number}" for number in range(40)]
    blends = [(WeightedPrompt(a, 0.25), WeightedPrompt(b, 0.75)) for a, b in pairwise(texts)]
    table, encoder = PromptTable(Encoder()), Encoder()
    for _ in range(2):
        found = read(table, [*of(*texts), *blends])
        plain = [encoder.embed(text) for text in texts]
        turned = [slerp(a, b, 0.75) for a, b in pairwise(plain)]
        assert torch.equal(found, torch.cat([*plain, *turned]))
    read(table, of("a"))
    assert len(table.prompts) <= 2 + 1
    assert len(table._mixes) <= 2


def test_an_encoder_that_fails_leaves_the_table_as_it_was() -> None:
    class Fails(Encoder):
        def embed(self, prompt: str, adapters: AdapterMix = ()) -> Tensor:
            if prompt == "bad":
                raise RuntimeError("out of memory")
            return super().embed(prompt) if prompt != "wide" else torch.zeros(1, 7, 6)

    table = PromptTable(Fails())
    known = read(table, of("a"))
    for text in ("bad", "wide"):
        for _ in range(50):
            with pytest.raises(RuntimeError):
                read(table, of("a", text))
    assert torch.equal(read(table, of("a")), known)
    assert (table.prompts, len(table._rows._storage_RLD)) == ({"a"}, 16)


@pytest.fixture
def denoiser() -> Denoiser:
    plain = tiny_denoiser()
    return Denoiser(plain.unet, plain.schedule, plain.conditioning, torch.float64, plain.bank_layout)


def test_a_forward_reads_its_prompts_without_a_wait(
    denoiser: Denoiser, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of a table that has them: one read by index, no tensor a row, however many tokens there are."""
    denoiser.prompts.prepare(MIXED)
    read(denoiser.prompts, MIXES)
    seen: list[Tensor] = []
    places = torch.tensor(denoiser.prompts.places(list(map(Worded, MIXES))))
    honest = torch.Tensor.index_select

    def counted(source: Tensor, *arguments: Any) -> Tensor:
        seen.append(source)
        return honest(source, *arguments)

    monkeypatch.setattr(torch.Tensor, "index_select", counted)
    with NoHostSync():
        found = denoiser.prompts.read(places)
    assert found.shape == (len(MIXES), TOKENS, 24)
    assert len(seen) == 1


def test_it_takes_whatever_embeds(denoiser: Denoiser) -> None:
    encode: Callable[[str], Tensor] = Encoder(3, 24, torch.float64).embed
    wanted = encode("a")
    table = PromptTable(Encoder(3, 24, torch.float64))
    assert torch.equal(read(table, of("a")), wanted)
