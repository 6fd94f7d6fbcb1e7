"""What a service says of the model that it serves, so that a client knows what it may ask for."""

from __future__ import annotations

import re
from dataclasses import dataclass

from rearview.contract.methods import Method
from rearview.contract.stream import ImageFormat

__all__ = ["Model", "Style"]

_WORD = re.compile(r"\w+(?:['’-]\w+)*")
_SMALL_WORDS = frozenset(
    (
        "a",
        "an",
        "and",
        "as",
        "at",
        "by",
        "for",
        "from",
        "in",
        "is",
        "it",
        "of",
        "on",
        "or",
        "the",
        "to",
        "with",
    )
)
"""They join what a prompt names: to mark them as unknown would say nothing."""


@dataclass(frozen=True, slots=True)
class Style:
    """A style that a model was trained with."""

    name: str = ""
    prompt: str = ""
    """A prompt that asks for it."""
    phrases: tuple[str, ...] = ()
    """By which the model knows it, in lower case."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Model:
    """A model, with what sessions may ask of it and what they get that do not ask."""

    name: str = ""
    width: int = 0
    """Of a session that names none, pixels."""
    height: int = 0
    """Of a session that names none, pixels."""
    side_multiple: int = 8
    """Both sides of a session are multiples of this, pixels."""
    motion_side_multiple: int = 0
    """The same for Method.LIVE2DIFF. 0: that is not served."""
    min_side: int = 0
    """The smallest width and height of a session, pixels."""
    strength: float = 0.0
    """Of a session that names none."""
    steps: int = 0
    """Of a session that names none."""
    max_steps: int = 0
    """The most that a session may ask for."""
    methods: tuple[Method, ...] = ()
    default_method: Method = Method.PER_FRAME
    formats: tuple[ImageFormat, ...] = ()
    """That frames may have."""
    styles: tuple[Style, ...] = ()
    takes_any_prompt: bool = False
    """Whether it follows any prompt. Else it knows the phrases of its styles alone."""
    adapters: tuple[str, ...] = ()
    """Names of the adapter sets that a session may ask for."""
    max_image_bytes: int = 0
    """Of one encoded frame."""
    max_pixels: int = 0
    """Of one frame, for the tenant that asks."""
    max_prompt_bytes: int = 0
    """Of one prompt, in UTF-8."""
    controls: tuple[str, ...] = ()
    """Names of the ControlNets that a session may ask for."""
    sent_controls: tuple[str, ...] = ()
    """Those of them that act on frames alone that bring a picture for them (`send(frame, controls=…)`)."""
    merged_adapters: tuple[str, ...] = ()
    """Those of `adapters` that are merged into weights: each is taken alone, and at weight 1."""
    takes_reference: bool = False
    """Whether a session may have a reference image."""

    def unknown_words(self, prompt: str) -> tuple[str, ...]:
        """The words of a prompt that the model was never taught, as they are written, each once.

        A phrase counts where its words stand whole and in order. None for a model that takes any prompt.
        """
        if self.takes_any_prompt:
            return ()
        words = list(_WORD.finditer(prompt))
        known = [word.group().casefold() in _SMALL_WORDS for word in words]
        spelled = [word.group().casefold() for word in words]
        for phrase in (phrase for style in self.styles for phrase in style.phrases):
            wanted = [word.group().casefold() for word in _WORD.finditer(phrase)]
            for at in range(len(spelled) - len(wanted) + 1):
                if wanted and spelled[at : at + len(wanted)] == wanted:
                    known[at : at + len(wanted)] = [True] * len(wanted)
        unknown = (word.group() for word, is_known in zip(words, known, strict=True) if not is_known)
        return tuple(dict.fromkeys(unknown))
