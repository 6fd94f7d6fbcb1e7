"""Where weights lie and in which format: diffusers folders, single files, ids on the Hugging Face hub.

Owns paths, downloads and the keys of the original Stable Diffusion layout; `checkpoint.py` makes networks
of them. What is missing, unreachable or unreadable is a ConfigError that names the option; pickles are
only ever read as plain weights.
"""

from __future__ import annotations

import json
import pickle
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from rearview.engine.card import SINGLE_FILE_SUFFIXES, checkpoint_folder, is_hub_id
from rearview.errors import ConfigError

__all__ = [
    "NETWORK_PARTS",
    "Source",
    "find_checkpoint",
    "find_lora",
    "find_vae",
    "from_single_file",
    "read_config",
    "read_weights",
]

NETWORK_PARTS = ("unet", "vae", "text_encoder")
"""Parts of a diffusers folder that hold weights; the others hold settings only."""
LORA_NAMES = ("pytorch_lora_weights.safetensors", "adapter_model.safetensors")
"""Under which diffusers and peft save a LoRA."""
WEIGHT_STEMS = ("diffusion_pytorch_model", "model", "pytorch_model")

Weights = Mapping[str, Tensor]


@dataclass(frozen=True, slots=True)
class Source:
    """Where the parts of one checkpoint lie, on this machine."""

    folder: Path
    """In diffusers format: settings of every part and, without `file`, their weights."""
    file: Path | None = None
    """Weights of all networks in the original Stable Diffusion layout."""

    def config(self, part: str, name: str = "config.json") -> dict[str, Any]:
        """The settings of a part. Raises ConfigError."""
        return read_config(self.folder / part / name)

    def has_weights(self, part: str) -> bool:
        """Whether the folder holds weights of a part."""
        return self.file is not None or any(
            file.name.startswith(WEIGHT_STEMS) and file.suffix in (".safetensors", ".bin")
            for file in (self.folder / part).glob("*")
        )


def find_checkpoint(checkpoint: str, parts: Sequence[str], single_file_config: str) -> Source:
    """The parts of `checkpoint`: a bundled name, a folder, a single file or a hub id (downloaded).

    `single_file_config`: folder or hub id with the settings for a single file. Raises ConfigError.
    """
    if Path(checkpoint).suffix in SINGLE_FILE_SUFFIXES:
        settings = _settings_folder(single_file_config, parts)
        return Source(settings, _existing_file("model.checkpoint", checkpoint))
    if is_hub_id(checkpoint):
        return Source(_hub_checkpoint(checkpoint, parts))
    return Source(checkpoint_folder(checkpoint))


def find_vae(vae: str) -> Source:
    """A VAE by itself: a folder that holds one (itself, or as its part `vae`) or a hub id."""
    folder = Path(vae)
    if is_hub_id(vae):
        names = ["config.json", "diffusion_pytorch_model.safetensors"]
        folder = _hub_folder("model.vae", vae, [*names, *(f"vae/{name}" for name in names)])
    if not folder.is_dir():
        raise ConfigError(f"model.vae {vae!r} is neither a folder nor a hub id (owner/name)")
    # `load_vae` looks for the part `vae` of a source's folder.
    return Source(folder if (folder / "vae" / "config.json").is_file() else _as_part(folder, "model.vae"))


def find_lora(option: str, path: str) -> Path:
    """The file of a LoRA: itself, the one in a folder, or on the hub (owner/name, owner/name/file)."""
    place = Path(path)
    owner_name, _, name = path.partition("/")[0] + "/" + "/".join(path.split("/")[1:2]), "", path
    if place.is_file():
        return place
    if place.is_dir():
        return _lora_in(place, option)
    if is_hub_id(path):
        return _lora_in(_hub_folder(option, path, ["*.safetensors", "adapter_config.json"]), option)
    name = "/".join(path.split("/")[2:])
    if name and is_hub_id(owner_name):
        return _existing_file(option, str(_hub_folder(option, owner_name, [name]) / name))
    raise ConfigError(f"{option} {path!r} is neither a file, nor a folder, nor on the hub (owner/name[/file])")
