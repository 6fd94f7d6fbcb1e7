"""Prompts to embeddings."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from rearview.engine.networks import conditioning as module
from rearview.engine.networks.conditioning import Conditioning
from rearview.engine.weights.checkpoint import load_denoiser
from support.tiny import TOKENS

pytestmark = pytest.mark.unit


class CountingEncoder:
    """The tiny text encoder, counting its forwards."""

    def __init__(self, encoder: torch.nn.Module) -> None:
        self._encoder = encoder
        self.device = torch.device("cpu")
        self.calls = 0

    def __call__(self, ids: torch.Tensor, *, return_dict: bool) -> object:
        self.calls += 1
        return self._encoder(ids, return_dict=return_dict)


@pytest.fixture
def counting(checkpoint: Path) -> tuple[Conditioning, CountingEncoder]:
    whole = load_denoiser(checkpoint, torch.device("cpu"), torch.float32).conditioning
    encoder = CountingEncoder(whole._text_encoder)
    return Conditioning(whole._tokenizer, encoder, torch.float32), encoder


def test_an_embedding_has_the_tokenizers_length(counting: tuple[Conditioning, CountingEncoder]) -> None:
    assert counting[0].embed("a").shape == (1, TOKENS, 24)
    assert counting[0].embed("").shape == (1, TOKENS, 24)
    assert counting[0].embed("word " * 1000).shape == (1, TOKENS, 24)


def test_prompts_differ_and_a_prompt_is_always_the_same(
    counting: tuple[Conditioning, CountingEncoder],
) -> None:
    first = counting[0].embed("a").clone()
    assert not torch.equal(first, counting[0].embed("b"))
    assert torch.equal(first, counting[0].embed("a"))


def test_a_known_prompt_is_not_encoded_again(counting: tuple[Conditioning, CountingEncoder]) -> None:
    for _ in range(3):
        counting[0].embed("a")
    assert counting[1].calls == 1


def test_the_cache_is_bounded_and_forgets_what_was_not_used_longest(
    counting: tuple[Conditioning, CountingEncoder], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "CACHE_PROMPTS", 3)
    conditioning, encoder = counting
    for prompt in ("a", "b", "c", "a", "d"):  # "b" is the one to go.
        conditioning.embed(prompt)
    assert encoder.calls == 4
    conditioning.embed("a")
    assert encoder.calls == 4
    conditioning.embed("b")
    assert encoder.calls == 5
    for number in range(100):
        conditioning.embed(str(number))
    held = [value for value in vars(conditioning).values() if isinstance(value, dict)]
    assert max(len(cache) for cache in held) == 3
