"""Motion modules as they are published, under the names of diffusers' UNetMotionModel.

Three layouts are read: AnimateDiff's original files (v1 and v3), the Live2Diff checkpoint, which is such a
file with a depth branch beside the modules, and folders of diffusers' MotionAdapter. What does not fit is
a ConfigError that names `model.motion` and the file; `checkpoint.py` compares names and shapes with the
UNet's own. What surprises: the table of positions is never loaded but checked and computed again, since
anything but the sinusoidal one would be replaced in silence.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from rearview.engine.weights.formats import read_config, read_weights
from rearview.errors import ConfigError

__all__ = ["DEPTH_PREFIX", "MotionWeights", "is_motion", "is_table", "read_motion"]

DEPTH_PREFIX = "flow_conv_in."
"""Of the depth branch, in files and in the UNet."""
ORIGINAL_HEADS = 8
"""Of every layer of every original file: they say it nowhere."""
ORIGINAL_TABLES = (24, 32)
"""Positions in the table of AnimateDiff v1 and Live2Diff, and of v2 and v3."""
NO_MID_BLOCK = "AnimateDiff v2 is not supported, which has one there; use v1, v3 or Live2Diff"
TABLE_TOLERANCE = 1e-2
"""The tables of some files are in half precision."""
MODULE = re.compile(r"(down|up)_blocks\.\d+\.motion_modules\.\d+\.")
MID_BLOCK = re.compile(r"mid_block\.motion_modules\.")
TABLE = re.compile(r"\.(pos_encoder|pos_embed)\.pe$")
ORIGINAL_NAMES = (
    (re.compile(r"\.temporal_transformer\."), "."),
    (re.compile(r"\.attention_blocks\.0\."), ".attn1."),
    (re.compile(r"\.attention_blocks\.1\."), ".attn2."),
    (re.compile(r"\.norms\.0\."), ".norm1."),
    (re.compile(r"\.norms\.1\."), ".norm2."),
    (re.compile(r"\.ff_norm\."), ".norm3."),
)
"""Methods 3.11."""


@dataclass(frozen=True, slots=True)
class MotionWeights:
    """What a file or folder holds."""

    tensors: Mapping[str, Tensor]
    """Of the motion modules and the depth branch, by their names in the UNet."""
    heads: int
    """Attention heads of every temporal layer."""
    max_frames: int
    """Positions that the modules were trained with: a window may not be longer."""
    norm_groups: int | None = None
    """Groups of the modules' norms. None: as many as the UNet's."""

    @property
    def has_depth(self) -> bool:
        """Whether they were trained with a depth branch."""
        return any(key.startswith(DEPTH_PREFIX) for key in self.tensors)


def is_motion(key: str) -> bool:
    """Whether a weight of the UNet belongs to a motion module or to the depth branch."""
    return key.startswith(DEPTH_PREFIX) or ".motion_modules." in key


def is_table(key: str) -> bool:
    """Whether it is a table of positions, which no file decides."""
    return TABLE.search(key) is not None


def read_motion(path: Path) -> MotionWeights:
    """Motion modules from a folder of diffusers' or an original file. Raises ConfigError."""
    try:
        return _read_folder(path) if path.is_dir() else _read_original(path)
    except ConfigError as error:
        raise ConfigError(f"model.motion: {error}") from None


def _read_folder(folder: Path) -> MotionWeights:
    path = folder / "config.json"
    config = read_config(path)
    if (name := config.get("_class_name")) != "MotionAdapter":
        raise ConfigError(f"{path}: {name} is not supported; use MotionAdapter")
    if config.get("use_motion_mid_block", True):
        raise ConfigError(f"{path}: use_motion_mid_block: {NO_MID_BLOCK}")
    if config.get("motion_transformer_layers_per_block", 1) != 1:
        raise ConfigError(f"{path}: motion_transformer_layers_per_block must be 1")
    if config.get("conv_in_channels") is not None:
        raise ConfigError(f"{path}: conv_in_channels: adapters that replace the UNet's conv_in do not fit")
    weights, _ = read_weights(_weights_in(folder))
    max_frames = _number(path, config, "motion_max_seq_length", 32)
    tables = _tables(folder, weights)
    if any(table.shape[-2] != max_frames for table in tables.values()):
        raise ConfigError(f"{path}: motion_max_seq_length {max_frames} is not the weights' table length")
    return MotionWeights(
        _without_tables(weights),
        heads=_number(path, config, "motion_num_attention_heads", 8),
        max_frames=max_frames,
        norm_groups=_number(path, config, "motion_norm_num_groups", 32),
    )


def _read_original(path: Path) -> MotionWeights:
    content, _ = read_weights(path)
    # `module.` is what training on several devices leaves; grids are of a position code that is not used.
    weights = {key.removeprefix("module."): value for key, value in content.items() if "grid" not in key}
    weights = {_renamed(key): value for key, value in weights.items()}
    if any(MID_BLOCK.match(key) for key in weights):
        raise ConfigError(f"{path} has a motion module in the middle block: {NO_MID_BLOCK}")
    odd = next((k for k in sorted(weights) if not (MODULE.match(k) or k.startswith(DEPTH_PREFIX))), None)
    if odd is not None:
        raise ConfigError(f"{path}: {odd} is not of a motion module or a depth branch")
    lengths = {table.shape[-2] for table in _tables(path, weights).values()}
    if len(lengths) != 1 or not lengths <= set(ORIGINAL_TABLES):
        known = " or ".join(map(str, ORIGINAL_TABLES))
        found = ", ".join(map(str, sorted(lengths))) or "none"
        raise ConfigError(f"{path}: tables of {known} positions are supported, it has {found}")
    return MotionWeights(_without_tables(weights), ORIGINAL_HEADS, lengths.pop())


def _renamed(key: str) -> str:
    for pattern, name in ORIGINAL_NAMES:
        key = pattern.sub(name, key)
    return key


def _weights_in(folder: Path) -> Path:
    """The weights of a folder: in full precision if it has both."""
    names = [f"diffusion_pytorch_model{end}" for end in (".safetensors", ".fp16.safetensors", ".bin")]
    found = next((folder / name for name in names if (folder / name).is_file()), None)
    if found is None:
        raise ConfigError(f"{folder} has no {names[0]}")
    return found


def _tables(path: Path, weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The positional tables (1, frames, C). Raises ConfigError unless they are the sinusoidal ones."""
    tables = {key: value for key, value in weights.items() if is_table(key)}
    for key, table in tables.items():
        if table.ndim != 3 or table.shape[0] != 1 or not _is_sinusoidal(table[0]):
            raise ConfigError(f"{path}: {key} is not the sinusoidal table of positions")
    return tables


def _is_sinusoidal(table_FC: Tensor) -> bool:
    frames, channels = table_FC.shape
    if channels % 2:
        return False
    angles = torch.arange(frames).float()[:, None] * torch.exp(
        torch.arange(0, channels, 2) * (-math.log(10000.0) / channels)
    )
    expected = torch.stack([angles.sin(), angles.cos()], dim=-1).flatten(1)
    return torch.allclose(table_FC.float(), expected, rtol=0.0, atol=TABLE_TOLERANCE)


def _without_tables(weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return {key: value for key, value in weights.items() if not is_table(key)}


def _number(path: Path, config: Mapping[str, Any], name: str, default: int) -> int:
    value = config.get(name, default)
    if not isinstance(value, int) or value < 1:
        raise ConfigError(f"{path}: {name} must be a whole number, at least 1")
    return value
