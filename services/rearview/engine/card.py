"""What a checkpoint says about itself, in `rearview.json`: read by the edge without loading torch."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from rearview.errors import ConfigError

__all__ = ["BUNDLED_CHECKPOINTS", "NULL_CHECKPOINT", "ModelCard", "checkpoint_folder"]

BUNDLED_CHECKPOINTS = Path(__file__).resolve().parent.parent / "checkpoints"
NULL_CHECKPOINT = "null"
"""The model that moves opaque bytes."""


@dataclass(frozen=True, slots=True)
class ModelCard:
    """Defaults and vocabulary of a checkpoint."""

    strength: float = 0.4
    steps: int = 2
    styles: Mapping[str, str] = field(default_factory=dict)
    """Style name to a prompt that asks for it."""
    phrases: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    """Style name to the phrases by which the model knows it. Empty: the model takes any prompt."""

    @classmethod
    def read(cls, checkpoint: str) -> ModelCard:
        """The card of a checkpoint; one without a card has the defaults. Raises ConfigError."""
        if checkpoint == NULL_CHECKPOINT:
            return cls()
        path = checkpoint_folder(checkpoint) / "rearview.json"
        if not path.exists():
            return cls()
        try:
            content = json.loads(path.read_text(encoding="utf-8"))
            styles = content["styles"].items()
            return cls(
                strength=float(content["default_strength"]),
                steps=int(content["default_steps"]),
                styles={name: str(style["prompt"]) for name, style in styles},
                phrases={name: tuple(style["phrases"]) for name, style in styles},
            )
        except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
            raise ConfigError(f"{path}: {error!r}") from None

    def advice(self, prompt: str) -> str:
        """What to tell a user about a prompt: empty if the model knows a style in it."""
        text = prompt.casefold()
        if not self.phrases or any(phrase in text for known in self.phrases.values() for phrase in known):
            return ""
        return "no known style in the prompt; known: " + ", ".join(sorted(self.styles))


def checkpoint_folder(checkpoint: str) -> Path:
    """Folder of a checkpoint: a bundled name or a path. Raises ConfigError if there is none."""
    bundled = BUNDLED_CHECKPOINTS / checkpoint
    folder = bundled if "/" not in checkpoint and bundled.is_dir() else Path(checkpoint)
    if not folder.is_dir():
        raise ConfigError(f"model.checkpoint {checkpoint!r} is neither bundled nor a folder")
    return folder
