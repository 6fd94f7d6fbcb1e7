"""VAEs that come as files without settings: an AutoencoderKL of the original layout, and TAESD's pair.

What a file does not say is told from the shapes in it. What surprises: TAESD's decoder begins with a clamp,
which counts as a layer there and is none in diffusers.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from torch import Tensor

from rearview.contract.family import tensor_shapes
from rearview.errors import ConfigError

__all__ = ["TAESD_NAMES", "SingleVae", "find_single_vae"]

TAESD_NAMES = ("taesd_encoder.safetensors", "taesd_decoder.safetensors")
TAESDXL_NAMES = ("taesdxl_encoder.safetensors", "taesdxl_decoder.safetensors")
PAIRS = (TAESD_NAMES, TAESDXL_NAMES)
KL_SCALING, XL_KL_SCALING = 0.18215, 0.13025
"""Of Stable Diffusion 1 and 2 and of XL, by which latents are scaled for diffusion."""
KL_GROUPS = 32
CONV = re.compile(r"encoder\.down\.(\d+)\.block\.(\d+)\.conv1\.weight")
LAYER = re.compile(r"(\d+)\.")


@dataclass(frozen=True, slots=True)
class SingleVae:
    """A VAE's files and the settings that they were told from."""

    files: tuple[Path, ...]
    """One, or TAESD's encoder and decoder."""
    config: Mapping[str, Any]

    def of_xl(self) -> SingleVae:
        """The same files, read as those of Stable Diffusion XL. Raises ConfigError for TAESD's, which are of
        other latents in the same shapes.
        """
        if self.files[0].name in TAESD_NAMES:
            text = "is TAESD of Stable Diffusion 1 and 2: take taesdxl (madebyollin/taesdxl)"
            raise ConfigError(f"model.vae: {self.files[0]} {text}")
        scaling = {"scaling_factor": XL_KL_SCALING} if len(self.files) == 1 else {}
        return replace(self, config={**self.config, **scaling})

    def taesd(self, parts: tuple[Mapping[str, Tensor], Mapping[str, Tensor]]) -> dict[str, Tensor]:
        """The weights of encoder and decoder, under diffusers' names."""
        encoder, decoder = parts
        named = {f"encoder.layers.{key}": value for key, value in encoder.items()}
        for key, value in decoder.items():
            layer = LAYER.match(key)
            if layer is None or layer[1] == "0":
                raise ConfigError(f"model.vae: {self.files[1]}: {key} is not of TAESD's decoder")
            named[f"decoder.layers.{int(layer[1]) - 1}.{key[layer.end() :]}"] = value
        return named


def find_single_vae(vae: str) -> SingleVae | None:
    """What `model.vae` names, if it is a file or a folder with TAESD's pair. Raises ConfigError."""
    path = Path(vae)
    folder = path if path.is_dir() else path.parent
    is_bare = path.is_dir() and not (path / "config.json").is_file()
    for pair in (tuple(folder / name for name in names) for names in PAIRS):
        if not (is_bare or path in pair) or not any(file.is_file() for file in pair):
            continue
        for file in pair:
            if not file.is_file():
                raise ConfigError(f"model.vae: {file} is missing: TAESD is an encoder and a decoder")
        return SingleVae(pair, {"_class_name": "AutoencoderTiny", **_tiny(pair[1])})
    if path.suffix != ".safetensors" or not path.is_file():
        return None
    if (folder / "config.json").is_file():
        raise ConfigError(f"model.vae: {path} has its settings beside it: name the folder {folder}")
    return SingleVae((path,), {"_class_name": "AutoencoderKL", **_kl(path)})


def _tiny(decoder: Path) -> dict[str, Any]:
    first = tensor_shapes(decoder).get("1.weight", ())
    if len(first) != 4:
        raise ConfigError(f"model.vae: {decoder} is not TAESD's decoder")
    return {"latent_channels": first[1], "encoder_block_out_channels": [64] * 4}


def _kl(path: Path) -> dict[str, Any]:
    """The settings of an AutoencoderKL, from the shapes of its layers."""
    shapes = {
        key.removeprefix("first_stage_model.").removeprefix("vae."): shape
        for key, shape in tensor_shapes(path).items()
    }
    convolutions = [(int(found[1]), int(found[2]), key) for key in shapes if (found := CONV.fullmatch(key))]
    latent = shapes.get("decoder.conv_in.weight", ())
    if not convolutions or len(latent) != 4:
        text = "is no VAE of Stable Diffusion: name a file of one, a folder of diffusers', or a hub id"
        raise ConfigError(f"model.vae: {path} {text}")
    channels = [shapes[key][0] for _, block, key in sorted(convolutions) if block == 0]
    return {
        "block_out_channels": channels,
        "down_block_types": ["DownEncoderBlock2D"] * len(channels),
        "up_block_types": ["UpDecoderBlock2D"] * len(channels),
        "layers_per_block": 1 + max(block for _, block, _ in convolutions),
        "latent_channels": latent[1],
        "norm_num_groups": KL_GROUPS,
        "scaling_factor": KL_SCALING,
    }
