"""What users are told about their prompts: whether the model knows a style in them, and which words it never
reads, since they are beyond its tokenizer's limit.

The edge has no networks, so it counts with the checkpoint's tokenizer files alone, through the library that
the replicas' tokenizer is made of. They are read once the replicas are there: a checkpoint on the hub is not
downloaded for it, and without files that can be read nothing is said.
"""

from __future__ import annotations

import json
import logging
import re
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING

from rearview.config import ModelConfig
from rearview.contract.card import ModelCard, checkpoint_folder, is_hub_id, is_opaque, is_single_file
from rearview.contract.settings import Settings
from rearview.errors import ConfigError

if TYPE_CHECKING:
    from tokenizers import Tokenizer

__all__ = ["Advice", "Wording"]

logger = logging.getLogger(__name__)

DEFAULT_MAX_TOKENS = 77
"""CLIP's, the start and the end of the prompt included."""
SHOWN_CHARACTERS = 300
CLIP_WORDS = r"'s|'t|'re|'ve|'m|'ll|'d|[\p{L}]+|[\p{N}]|[^\s\p{L}\p{N}]+"

Find = Callable[[str], Path | None]
"""Where a file of the checkpoint is, by its path in it."""


class Advice:
    """On the prompts of a session."""

    def __init__(self, card: ModelCard, model: ModelConfig) -> None:
        self._card, self._wording = card, Wording(model)

    def prepare(self) -> None:
        """Read the files now, which takes a moment that no stream should wait for."""
        self._wording.note([""])

    def on(self, settings: Settings) -> str:
        """Empty if the model knows a style in them, and all of their words count."""
        told = (self._card.advice(settings.wording), self._wording.note(settings.texts))
        return "; ".join(filter(None, told))


class Wording:
    """What a model reads of prompts."""

    def __init__(self, model: ModelConfig) -> None:
        self._find = _finder(model)

    def note(self, prompts: Iterable[str]) -> str:
        """What to tell a user about prompts that are too long: empty if every word counts."""
        return "; ".join(filter(None, map(self._note, dict.fromkeys(prompts))))

    def uncounted(self, prompt: str) -> str:
        """The end of a prompt that is not read, from the first word on that is not read whole."""
        if self._reader is None:
            return ""
        offsets = self._reader.tokenizer.encode(prompt, add_special_tokens=False).offsets
        if len(offsets) <= self._reader.room:
            return ""
        first = offsets[self._reader.room][0]
        words = [word.start() for word in re.finditer(r"\S+", prompt) if word.start() <= first]
        return prompt[words[-1] if words else first :].strip()

    def _note(self, prompt: str) -> str:
        lost = self.uncounted(prompt)
        if not lost or self._reader is None:
            return ""
        shown = lost if len(lost) <= SHOWN_CHARACTERS else f"{lost[:SHOWN_CHARACTERS]}…"
        return f"the model reads {self._reader.room} tokens of a prompt; not read: {shown!r}"

    @cached_property
    def _reader(self) -> _Reader | None:
        try:
            return _read(self._find)
        except Exception as error:  # The library raises nothing narrower; a replica says what is wrong.
            logger.warning("no prompt is measured, its tokenizer cannot be read: %s", error)
            return None


@dataclass(frozen=True, slots=True)
class _Reader:
    """What turns prompts into tokens."""

    tokenizer: Tokenizer
    room: int
    """Tokens beside the start and the end of a prompt."""


def _read(find: Find) -> _Reader | None:
    from tokenizers import Tokenizer

    whole, vocabulary = find("tokenizer/tokenizer.json"), find("tokenizer/vocab.json")
    merges, settings = find("tokenizer/merges.txt"), find("tokenizer/tokenizer_config.json")
    if whole is not None:
        tokenizer = Tokenizer.from_file(str(whole))
    elif vocabulary is not None and merges is not None:
        tokenizer = _clip_tokenizer(vocabulary, merges)
    else:
        return None
    tokenizer.no_truncation()
    tokenizer.no_padding()
    told = json.loads(settings.read_text(encoding="utf-8")) if settings is not None else {}
    return _Reader(tokenizer, int(told.get("model_max_length", DEFAULT_MAX_TOKENS)) - 2)


def _clip_tokenizer(vocabulary: Path, merges: Path) -> Tokenizer:
    """Of the two files that older checkpoints have."""
    from tokenizers import Regex, Tokenizer, models, normalizers, pre_tokenizers

    options = {"unk_token": "<|endoftext|>", "end_of_word_suffix": "</w>"}
    tokenizer = Tokenizer(models.BPE.from_file(str(vocabulary), str(merges), **options))
    steps = [normalizers.NFC(), normalizers.Replace(Regex(r"\s+"), " "), normalizers.Lowercase()]
    tokenizer.normalizer = normalizers.Sequence(steps)
    words = pre_tokenizers.Split(Regex(CLIP_WORDS), behavior="removed", invert=True)
    bytes_of_words = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence([words, bytes_of_words])
    return tokenizer


def _finder(model: ModelConfig) -> Find:
    if is_opaque(model.checkpoint):
        return lambda name: None
    place = model.single_file_config if is_single_file(model.checkpoint) else model.checkpoint
    if is_hub_id(place):
        return lambda name: _cached(place, name)
    try:
        folder = checkpoint_folder(place)
    except ConfigError:  # Who loads the model says so.
        return lambda name: None

    def find(name: str) -> Path | None:
        return folder / name if (folder / name).is_file() else None

    return find


def _cached(repository: str, name: str) -> Path | None:
    """A file of a repository on the hub, if it is on this machine."""
    from huggingface_hub import try_to_load_from_cache

    found = try_to_load_from_cache(repository, name)
    return Path(found) if isinstance(found, str) else None
