"""Prompts: every generated one means its style, and the tokenizer covers anything a user may type."""

from __future__ import annotations

import numpy as np
import pytest

pytest.importorskip("cv2")
pytest.importorskip("skimage")

from rearview_lab.data.prompts import PHRASES, canonical_prompt, sample_prompt
from rearview_lab.data.styles import STYLES
from rearview_lab.training.vocabulary import build_tokenizer

pytestmark = pytest.mark.unit


def style_of_prompt(prompt: str) -> str:
    """The style whose longest phrase occurs in the prompt; natural when none does: what the model is taught,
    written as a rule.
    """
    phrases = [(len(phrase), phrase, style) for style in STYLES for phrase in PHRASES[style]]
    found = [(length, style) for length, phrase, style in phrases if phrase in prompt.lower()]
    return max(found, key=lambda one: one[0])[1] if found else "natural"


def test_every_style_has_phrases_and_no_phrase_has_two_styles():
    assert set(PHRASES) == set(STYLES)
    phrases = [phrase for style in STYLES for phrase in PHRASES[style]]
    assert len(phrases) == len(set(phrases))


@pytest.mark.parametrize("style", STYLES)
def test_generated_prompts_are_recognised_as_their_style(style):
    rng = np.random.default_rng(0)
    for _ in range(200):
        prompt = sample_prompt(rng, style)
        assert style_of_prompt(prompt) == style, prompt


@pytest.mark.parametrize(
    ("prompt", "style"),
    [
        ("", "natural"),
        ("a man with a hat", "natural"),
        ("van gogh", "natural"),
        ("Pencil Sketch of my grandmother", "pencil"),
        ("turn this into claymation please", "clay"),
        ("cyberpunk tokyo 2077", "cyberpunk"),
        ("pixel art game hero", "pixel-art"),
    ],
)
def test_free_prompts_map_to_styles(prompt, style):
    assert style_of_prompt(prompt) == style


def test_generated_prompts_are_reproducible():
    first, second = np.random.default_rng(9), np.random.default_rng(9)
    assert [sample_prompt(first, "oil") for _ in range(20)] == [
        sample_prompt(second, "oil") for _ in range(20)
    ]


def test_tokenizer_covers_any_text_and_pads_to_its_length():
    tokenizer = build_tokenizer()
    for prompt in ("", canonical_prompt("oil"), "Zürich, 日本 🎨", "x" * 400):
        tokens = tokenizer(prompt, padding="max_length", truncation=True).input_ids
        assert len(tokens) == tokenizer.model_max_length
        assert tokens[0] == tokenizer.bos_token_id
        assert max(tokens) < len(tokenizer)
