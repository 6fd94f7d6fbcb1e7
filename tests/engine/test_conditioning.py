"""Prompts to embeddings."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from rearview.engine.networks.conditioning import Conditioning
from rearview.engine.weights.checkpoint import load_denoiser
from support.tiny import TOKENS

pytestmark = pytest.mark.unit


@pytest.fixture
def conditioning(checkpoint: Path) -> Conditioning:
    return load_denoiser(checkpoint, torch.device("cpu"), torch.float32).conditioning


def test_an_embedding_has_the_tokenizers_length(conditioning: Conditioning) -> None:
    for prompt in ("a", "", "word " * 1000):
        assert conditioning.embed(prompt).shape == (1, TOKENS, 24)


def test_prompts_differ_and_a_prompt_is_always_the_same(conditioning: Conditioning) -> None:
    first = conditioning.embed("a").clone()
    assert not torch.equal(first, conditioning.embed("b"))
    assert torch.equal(first, conditioning.embed("a"))
