"""What a checkpoint says about itself, in `rearview.json`: read by the edge without loading torch."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from rearview.contract.sampler import is_distilled_to_one_step
from rearview.errors import ConfigError

__all__ = [
    "BUNDLED_CHECKPOINTS",
    "CHAIN_CHECKPOINT",
    "NULL_CHECKPOINT",
    "ModelCard",
    "bundled_names",
    "checkpoint_folder",
    "has_motion",
    "is_chain",
    "is_hub_id",
    "is_opaque",
    "is_single_file",
    "own_motion",
    "settings_in",
    "size_multiple",
]

BUNDLED_CHECKPOINTS = Path(__file__).resolve().parent.parent / "checkpoints"
NULL_CHECKPOINT = "null"
"""The model that moves opaque bytes."""
CHAIN_CHECKPOINT = "chain"
"""The model that watermarks opaque bytes with a hash chain, which every session of it remembers. `chain:5+1`:
a forward of a denoising step takes 5 ms and 1 ms for each row."""
SINGLE_FILE_SUFFIXES = (".safetensors", ".ckpt")
DEFAULT_MULTIPLE = 64
"""Of Stable Diffusion 1.5: its VAE divides a side by 8, its UNet by 8 again."""
ONE_STEP = {"strength": 0.5, "steps": 1}
"""Of SD-Turbo: from the middle of the schedule, as its authors run it over pictures."""
EMBEDDED_SCALE = 8.0
"""Of LCM's own weights: in the middle of the range that they were distilled over."""
HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*", re.ASCII)


@dataclass(frozen=True, slots=True)
class ModelCard:
    """Defaults and vocabulary of a checkpoint."""

    strength: float = 0.4
    steps: int = 2
    styles: Mapping[str, str] = field(default_factory=dict)
    """Style name to a prompt that asks for it."""
    phrases: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    """Style name to the phrases, in lower case, by which the model knows it. Empty: the model takes any
    prompt.
    """
    bank: Mapping[str, Any] = field(default_factory=dict)
    """Fields of `BankConfig` that the checkpoint was trained with. Empty: it knew no bank."""
    guidance_scale: float = 1.0
    embeds_scale: bool = False
    """Whether the UNet is conditioned on the scale of guidance, and guides itself (LCM Dreamshaper)."""

    @classmethod
    def read(cls, checkpoint: str) -> ModelCard:
        """The card of a checkpoint; one without a card has what its settings say. Raises ConfigError.

        A single file has no card, and one on the hub is not downloaded for it.
        """
        if is_opaque(checkpoint) or is_hub_id(checkpoint):
            return cls()
        if is_single_file(checkpoint):
            if not Path(checkpoint).is_file():
                raise ConfigError(f"model.checkpoint {checkpoint!r} is not a file")
            return cls()
        folder = checkpoint_folder(checkpoint)
        plain = cls(**_defaults(folder))
        path = folder / "rearview.json"
        if not path.exists():
            return plain
        try:
            content = json.loads(path.read_text(encoding="utf-8"))
            styles = content["styles"].items()
            return replace(
                plain,
                strength=_checked(float(content["default_strength"]), "default_strength", 0.0, 1.0),
                steps=int(_checked(int(content["default_steps"]), "default_steps", 0, math.inf)),
                styles={name: str(style["prompt"]) for name, style in styles},
                phrases={name: _phrases(name, style["phrases"]) for name, style in styles},
                bank=dict(content.get("bank", {})),
            )
        except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
            raise ConfigError(f"{path}: {error!r}") from None

    def advice(self, prompt: str) -> str:
        """What to tell a user about a prompt: empty if the model knows a style in it."""
        text = prompt.casefold()
        phrases = [phrase for known in self.phrases.values() for phrase in known]
        # From the beginning of a word on: oil is in no foil, and in oils.
        if not phrases or any(re.search(rf"(?<!\w){re.escape(phrase)}", text) for phrase in phrases):
            return ""
        return "no known style in the prompt; known: " + ", ".join(sorted(self.styles))


def _defaults(folder: Path) -> dict[str, Any]:
    """What follows from the settings of scheduler and UNet."""
    scheduler = settings_in(folder / "scheduler" / "scheduler_config.json")
    said: dict[str, Any] = dict(ONE_STEP) if is_distilled_to_one_step(scheduler) else {}
    if settings_in(folder / "unet" / "config.json").get("time_cond_proj_dim") is not None:
        said |= {"embeds_scale": True, "guidance_scale": EMBEDDED_SCALE}
    return said


def settings_in(path: Path) -> Mapping[str, Any]:
    """A JSON object; empty if there is none. The loader refuses what it needs and cannot read."""
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return content if isinstance(content, dict) else {}


def _checked(value: float, name: str, above: float, most: float) -> float:
    if not above < value <= most:
        raise ValueError(f"{name} {value} is not in ({above}, {most}]")
    return value


def _phrases(name: str, phrases: object) -> tuple[str, ...]:
    """What a style is known by: its name, too."""
    if not isinstance(phrases, list):
        raise TypeError("phrases is not a list")
    return tuple(dict.fromkeys(str(phrase).casefold() for phrase in (*phrases, name)))


def is_chain(checkpoint: str) -> bool:
    """Whether it is the chain model: each of its sessions remembers all its inputs, whatever its method."""
    return checkpoint.partition(":")[0] == CHAIN_CHECKPOINT


def is_opaque(checkpoint: str) -> bool:
    """Whether it moves opaque bytes: there are no networks, and no images."""
    return checkpoint == NULL_CHECKPOINT or is_chain(checkpoint)


def is_single_file(checkpoint: str) -> bool:
    """Whether it names one file with all weights, there or not."""
    return checkpoint.endswith(SINGLE_FILE_SUFFIXES)


def is_hub_id(checkpoint: str) -> bool:
    """Whether it can only be a repository on the Hugging Face hub: owner/name.

    A path of that shape is one if it exists, or if only its last part is missing.
    """
    is_path = Path(checkpoint).exists() or Path(checkpoint).parent.is_dir()
    return HUB_ID.fullmatch(checkpoint) is not None and not is_single_file(checkpoint) and not is_path


def bundled_names() -> list[str]:
    """The checkpoints that come with the package."""
    return sorted(folder.name for folder in BUNDLED_CHECKPOINTS.iterdir() if folder.is_dir())


def checkpoint_folder(checkpoint: str, option: str = "model.checkpoint") -> Path:
    """Folder of a checkpoint: a bundled name or a path. Raises ConfigError if there is none."""
    bundled = BUNDLED_CHECKPOINTS / checkpoint
    folder = bundled if "/" not in checkpoint and bundled.is_dir() else Path(checkpoint)
    if not checkpoint or not folder.is_dir():
        raise ConfigError(
            f"{option} {checkpoint!r} is neither bundled nor a folder nor a hub id (owner/name)"
        )
    return folder


def own_motion(checkpoint: str) -> Path | None:
    """Folder of a checkpoint's own motion modules, None if it has none. Raises ConfigError.

    Single files and checkpoints on the hub have none: theirs are named in `model.motion`.
    """
    if is_opaque(checkpoint) or is_single_file(checkpoint) or is_hub_id(checkpoint):
        return None
    folder = checkpoint_folder(checkpoint) / "motion_adapter"
    return folder if folder.is_dir() else None


def has_motion(checkpoint: str, motion: str = "") -> bool:
    """Whether `model.checkpoint` with `model.motion` has motion modules, which a temporal cache needs."""
    return not is_opaque(checkpoint) and bool(motion or own_motion(checkpoint))


def size_multiple(checkpoint: str) -> int:
    """Pixels of which both sides of a session with motion modules are a multiple: every level of VAE and
    UNet halves them, and nothing may be rounded. Raises ConfigError.
    """
    if is_opaque(checkpoint) or is_single_file(checkpoint) or is_hub_id(checkpoint):
        return DEFAULT_MULTIPLE
    folder = checkpoint_folder(checkpoint)
    levels = (_num_blocks(folder / part / "config.json") for part in ("vae", "unet"))
    return math.prod(2 ** (blocks - 1) for blocks in levels)


def _num_blocks(path: Path) -> int:
    try:
        config = json.loads(path.read_text(encoding="utf-8"))
        return len(config.get("block_out_channels") or config["encoder_block_out_channels"])
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise ConfigError(f"{path}: {error!r}") from None
