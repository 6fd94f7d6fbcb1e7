"""Which words of a long prompt count: as many as the replicas' own tokenizer reads."""

from __future__ import annotations

import unicodedata
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from rearview.config import ModelConfig
from rearview.contract.card import BUNDLED_CHECKPOINTS, ModelCard
from rearview.contract.settings import Settings, WeightedPrompt
from rearview.ingress.wording import Advice, Wording

pytestmark = pytest.mark.unit

FOLDER = BUNDLED_CHECKPOINTS / "pocket" / "tokenizer"
LONG = (
    "oil painting of a quiet harbour at dawn with small wooden boats and reflections on the water, "
    "seagulls circling above the masts"
)


@pytest.fixture(scope="module", params=["tokenizer.json", "vocabulary and merges"])
def wording(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Wording:
    """Of the bundled model, from either kind of files."""
    if request.param == "tokenizer.json":
        return Wording(ModelConfig())
    folder = tmp_path_factory.mktemp("older") / "tokenizer"
    folder.mkdir()
    for name in ("vocab.json", "merges.txt", "tokenizer_config.json"):
        (folder / name).write_bytes((FOLDER / name).read_bytes())
    return Wording(ModelConfig(checkpoint=str(folder.parent)))


def read_by_the_model(prompt: str) -> list[int]:
    """The tokens that reach the text encoder."""
    from transformers import CLIPTokenizer

    tokenizer = CLIPTokenizer.from_pretrained(str(FOLDER))
    ids: list[int] = tokenizer(prompt, truncation=True, max_length=tokenizer.model_max_length).input_ids
    return ids


def test_a_prompt_that_is_read_whole_needs_no_word_about_it(wording: Wording) -> None:
    assert wording.note(["oil painting", "", "neon lights"]) == ""


def test_the_words_that_are_not_read_are_named(wording: Wording) -> None:
    note = wording.note([LONG, "oil painting"])
    assert note.startswith("the model reads 30 tokens of a prompt; not read: ")
    assert note.endswith("seagulls circling above the masts'")


def test_other_words_there_change_nothing_and_other_words_before_do(wording: Wording) -> None:
    """By the tokenizer that replicas use."""
    lost = wording.uncounted(LONG)
    kept = LONG.removesuffix(lost)
    assert read_by_the_model(kept + "zebra crossing " * 9) != read_by_the_model("x " + LONG)
    cut, whole = read_by_the_model(LONG), read_by_the_model(kept)
    assert cut[: len(whole) - 1] == whole[:-1]
    assert 0 <= len(cut) - len(whole) < len(lost.split()[0])


@given(st.text(st.characters(codec="utf-8"), max_size=120))
def test_what_is_not_read_is_the_end_of_the_prompt_and_only_of_long_ones(text: str) -> None:
    wording = _POCKET
    lost = wording.uncounted(text)
    assert text.rstrip().endswith(lost)
    # A tokenizer composes characters first, which takes some of them apart, and reads small letters.
    read = unicodedata.normalize("NFC", text).lower()
    assert bool(lost) <= (len(read.encode()) > 30)


_POCKET = Wording(ModelConfig())


def test_a_very_long_end_is_shortened(wording: Wording) -> None:
    assert len(wording.note(["castle " * 500])) < 400


@pytest.mark.parametrize("checkpoint", ["null", "owner/never-downloaded", "missing-folder"])
def test_without_files_nothing_is_said(
    checkpoint: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path))
    assert Wording(ModelConfig(checkpoint=checkpoint)).note([LONG * 9]) == ""


@pytest.mark.parametrize("name", ["tokenizer.json", "tokenizer_config.json"])
def test_files_that_cannot_be_read_stop_no_session(tmp_path: Path, name: str) -> None:
    """A replica that loads the checkpoint says what is wrong with it."""
    (tmp_path / "tokenizer").mkdir()
    (tmp_path / "tokenizer" / "tokenizer.json").write_bytes((FOLDER / "tokenizer.json").read_bytes())
    (tmp_path / "tokenizer" / name).write_text("{ cut")
    advice = Advice(ModelCard(), ModelConfig(checkpoint=str(tmp_path)))
    advice.prepare()
    assert advice.on(Settings(prompt=LONG)) == ""


def test_advice_is_about_the_style_and_about_every_prompt_of_a_mix() -> None:
    advice = Advice(ModelCard.read("pocket"), ModelConfig())
    assert advice.on(Settings(prompt="oil painting")) == ""
    mix = (WeightedPrompt("a " * 40 + "first", 1.0), WeightedPrompt("a " * 40 + "second", 1.0))
    told = advice.on(Settings(prompts=mix, negative_prompt="a " * 40 + "third"))
    assert told.startswith("no known style in the prompt; known: ")
    assert all(word in told for word in ("first", "second", "third"))
