"""Which words of a prompt a model was never taught."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st
from rearview.contract.model import Model, Style

pytestmark = pytest.mark.unit

PENCIL = Style("pencil", "pencil drawing", ("pencil drawing", "graphite"))
UKIYO_E = Style("ukiyo-e", "ukiyo-e woodblock print", ("ukiyo-e", "woodblock print"))
POCKET = Model(styles=(PENCIL, UKIYO_E))


@pytest.mark.parametrize(
    ("prompt", "unknown"),
    [
        ("pencil drawing", ()),
        ("A Pencil  Drawing, GRAPHITE", ()),
        ("a pencil drawing of a harbour in the fog", ("harbour", "fog")),
        ("pencil", ("pencil",)),
        ("drawing pencil", ("drawing", "pencil")),
        ("graphites", ("graphites",)),
        ("ukiyo-e of two cats, two Cats", ("two", "cats", "Cats")),
        ("", ()),
        ("  …!", ()),
        ("Hafen бухта 港", ("Hafen", "бухта", "港")),
    ],
)
def test_words_outside_known_phrases_are_unknown(prompt: str, unknown: tuple[str, ...]) -> None:
    assert POCKET.unknown_words(prompt) == unknown


def test_a_model_that_takes_any_prompt_knows_every_word() -> None:
    assert Model(takes_any_prompt=True, styles=(PENCIL,)).unknown_words("harbour fog") == ()


@given(st.text(max_size=80))
def test_unknown_words_stand_in_the_prompt_and_a_known_phrase_adds_none(prompt: str) -> None:
    unknown = POCKET.unknown_words(prompt)
    assert all(word in prompt for word in unknown)
    assert POCKET.unknown_words(f"{prompt} , graphite") == unknown
