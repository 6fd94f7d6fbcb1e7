"""What a model takes of memory, told by the names and shapes in its files: before anything is loaded.

Read are folders in diffusers' format and .safetensors files, of which only the first bytes are looked at. Of
all else (pickles, what is still on the hub, the original layout of a single file) nothing is known, and
nothing is said. Elements are numbers of whatever type: bytes are for whoever knows the type.
Shape legend: N tokens or pixels of a layer, C channels.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from rearview.contract.card import checkpoint_folder, is_hub_id, is_opaque, is_single_file, settings_in
from rearview.contract.family import tensor_shapes
from rearview.errors import ConfigError

__all__ = ["UNetShapes", "elements_of", "latent_scale_of", "shapes_in", "shapes_of"]

Shapes = Mapping[str, tuple[int, ...]]
BLOCK = re.compile(r"^(?:(down|up)_blocks\.(\d+)|mid_block)\.")
SPATIAL = re.compile(BLOCK.pattern + r"attentions\.\d+\.transformer_blocks\.\d+\.attn1\.to_k\.weight$")
TEMPORAL = re.compile(BLOCK.pattern + r"motion_modules\.\d+\..*\.to_k\.weight$")
"""In every layout: diffusers' has attn1 and attn2 there, the original one attention_blocks.0 and .1."""


def shapes_of(checkpoint: str, part: str, instead: str = "") -> Shapes:
    """The tensors of a part of a checkpoint; none if they cannot be told. `instead`: folder or file that is
    used in its place.
    """
    if instead:
        return {} if is_hub_id(instead) else shapes_in(Path(instead), part)
    if is_opaque(checkpoint) or is_hub_id(checkpoint) or is_single_file(checkpoint):
        return {}
    return shapes_in(checkpoint_folder(checkpoint) / part, part)


def shapes_in(place: Path, part: str) -> Shapes:
    """The tensors of a file, of a folder or of its subfolder `part`; of weights in two precisions those in
    full. None if there are no .safetensors.
    """
    if place.is_file():
        return tensor_shapes(place) if place.suffix == ".safetensors" else {}
    files = sorted(place.glob("*.safetensors")) or sorted((place / part).glob("*.safetensors"))
    whole = [file for file in files if not re.search(r"\.fp16[.-]", file.name)]
    return {name: shape for file in whole or files for name, shape in tensor_shapes(file).items()}


def elements_of(shapes: Shapes) -> int:
    """Numbers in all tensors."""
    return sum(math.prod(shape) for shape in shapes.values())


def latent_scale_of(checkpoint: str, vae: str = "") -> int | None:
    """Pixels per latent cell, by the settings of the autoencoder; None if there are none here."""
    try:
        folder = Path(vae) if vae else checkpoint_folder(checkpoint) / "vae"
    except ConfigError:
        return None
    found = settings_in(folder / "config.json") or settings_in(folder / "vae" / "config.json")
    blocks = found.get("block_out_channels") or found.get("encoder_block_out_channels")
    return 2 ** (len(blocks) - 1) if isinstance(blocks, list) and blocks else None


@dataclass(frozen=True)
class UNetShapes:
    """The layers of a UNet, and of the motion modules over it, that remember."""

    unet: Shapes
    motion: Shapes

    def bank_elements(self, height: int, width: int, size_frames: float, *, keeps_all: bool) -> int:
        """That a feature bank keeps of one step, for latents of that size. `size_frames`: frames' worth of
        tokens; `keeps_all`: whether outputs are kept in every layer, and not only where they are fused.
        """
        layers = list(self._spatial())
        blocks = [name.split(".attentions.")[0] for name, *_ in layers]
        fusing_up = next((block for block in blocks if block.startswith("up_blocks.")), None)
        last = {name.rpartition(".transformer_blocks.")[0]: name for name, *_ in layers}.values()
        elements = 0
        for block, (name, level, keys, outputs) in zip(blocks, layers, strict=True):
            rows, columns = height, width
            for _ in range(level):  # A stride-2 convolution rounds odd sizes up.
                rows, columns = (rows + 1) // 2, (columns + 1) // 2
            fuses = block in ("mid_block", fusing_up) and name in last
            kept = outputs if keeps_all or fuses else 0
            elements += math.ceil(rows * columns * size_frames) * (2 * keys + kept)
        return elements

    def cache_elements(self, height: int, width: int, frames: int) -> int:
        """That a temporal cache keeps of one step: keys and values, 2 N C of each frame and layer."""
        found = ((self._level(name), shape[0]) for name, shape in self.motion.items() if TEMPORAL.match(name))
        return sum(2 * (height >> level) * (width >> level) * channels * frames for level, channels in found)

    def _spatial(self) -> Iterator[tuple[str, int, int, int]]:
        """Name, level, and channels of keys and outputs of each self-attention, from the input on."""
        for name in sorted((name for name in self.unet if SPATIAL.match(name)), key=_order):
            attention = name.removesuffix("to_k.weight")
            (keys, taken), queries = self.unet[name], self.unet[f"{attention}to_q.weight"]
            if queries[1] == taken:  # Else it reads the prompt, as with `only_cross_attention`.
                outputs = self.unet[f"{attention}to_out.0.weight"][0]
                yield name, self._level(name), keys, outputs

    def _level(self, name: str) -> int:
        """How often a latent was halved before that layer."""
        side, index = _place(name)
        if side == 0:
            return self._sampling("down_blocks.{}.downsamplers.", index)
        halved = self._sampling("down_blocks.{}.downsamplers.", len(self.unet))
        return halved - self._sampling("up_blocks.{}.upsamplers.", index)

    def _sampling(self, start: str, before: int) -> int:
        """Blocks that change the size, of those before one."""
        indices = {_place(name)[1] for name in self.unet if BLOCK.match(name)}
        starts = [start.format(index) for index in indices if index < before]
        return sum(any(name.startswith(each) for name in self.unet) for each in starts)


def _order(name: str) -> tuple[tuple[int, int], list[int]]:
    """Of layers from the input on, whatever the order in the files."""
    return _place(name), [int(number) for number in re.findall(r"\d+", name)]


def _place(name: str) -> tuple[int, int]:
    """Down, middle or up, and the number of the block."""
    found = BLOCK.match(name)
    assert found is not None, f"{name} is in no block"
    return ({"down": 0, None: 1, "up": 2}[found[1]], int(found[2] or 0))
