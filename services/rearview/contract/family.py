"""Which family a checkpoint is of, and whether its files are whole: told from settings and headers alone.

No weight is read, so that a wrong path or a wrong kind of model is refused within a second, before a service
starts. The loader asks the same (`engine/weights/formats.py`). What surprises: the header of a .safetensors
file names every tensor with its place, which is enough to see that the end of the file is missing.
"""

from __future__ import annotations

import json
import struct
import zipfile
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from rearview.contract.card import (
    ModelCard,
    checkpoint_folder,
    is_hub_id,
    is_opaque,
    is_single_file,
    settings_in,
)
from rearview.errors import ConfigError

__all__ = [
    "TAKE_INSTEAD",
    "check_checkpoint",
    "check_folder",
    "check_whole",
    "is_xl",
    "is_xl_file",
    "tensor_shapes",
]

TAKE_INSTEAD = (
    "take a Stable Diffusion 1.5, 2.1 or XL checkpoint, LCM weights or a turbo of them (--model sd-turbo)"
)
POINTER = b"version https://git-lfs.github.com/spec/"
ZIP = b"PK"
"""What torch has put its pickles into since version 1.6."""
MAX_HEADER_BYTES = 100 << 20
"""What the format allows."""
WEIGHED = ("unet", "text_encoder", "text_encoder_2", "vae", "motion_adapter")
"""Parts of a folder with weights."""
PIPELINES = (
    ("StableVideoDiffusion", "Stable Video Diffusion"),
    ("StableDiffusion3", "Stable Diffusion 3"),
    ("Flux", "Flux"),
    ("PixArt", "PixArt"),
    ("Sana", "Sana"),
    ("Kandinsky", "Kandinsky"),
    ("Wan", "Wan"),
    ("IF", "DeepFloyd IF"),
)
"""First part of a pipeline's or transformer's class to what it is called."""
REFINER = "the refiner of Stable Diffusion XL, for pictures that its base has made"
XL_KEYS = "conditioner.embedders.1."
CHANNELS = {
    5: "a depth-to-image model",
    7: "an upscaler",
    8: "an image-editing model (InstructPix2Pix)",
    9: "an inpainting model",
}
"""Inputs of a UNet: beside the picture it wants a mask, a picture or a depth map, which there is not."""
ORIGINAL_KEYS = (
    ("conditioner.embedders.0.model.", REFINER),
    ("model.diffusion_model.joint_blocks.", "Stable Diffusion 3"),
    ("double_blocks.", "Flux"),
    ("model.diffusion_model.double_blocks.", "Flux"),
)
"""First part of a tensor's name in a single file."""
OTHER_FILES = (
    (("lora_unet_", "lora_te", "unet.", "base_model."), "a LoRA: name it in model.adapters"),
    (("down_blocks.0.motion_", "module.down_blocks.0.motion_"), "motion modules: name them in model.motion"),
    (("encoder.", "decoder.", "first_stage_model."), "a VAE: name it in model.vae"),
    (("control_model.", "controlnet_"), "a ControlNet: name its folder in model.controls"),
    (("image_proj.", "ip_adapter."), "an IP-Adapter: name it in model.reference"),
)
UNET_PREFIX = "model.diffusion_model."
FIRST_LAYER = f"{UNET_PREFIX}input_blocks.0.0.weight"


def check_checkpoint(checkpoint: str) -> None:
    """Raises ConfigError for a folder or single file that is of no supported family, is cut short, or has a
    card that makes no sense. What is on the hub is not looked at.
    """
    ModelCard.read(checkpoint)
    if is_opaque(checkpoint) or is_hub_id(checkpoint):
        return
    if is_single_file(checkpoint):
        _check_single_file(Path(checkpoint))
        return
    check_folder(checkpoint_folder(checkpoint))


def check_folder(folder: Path) -> None:
    """A checkpoint in diffusers format. Raises ConfigError."""
    pipeline = str(settings_in(folder / "model_index.json").get("_class_name", ""))
    if name := _family(pipeline):
        raise _refused(folder, name)
    transformer = settings_in(folder / "transformer" / "config.json")
    if transformer:
        kind = str(transformer.get("_class_name", "a transformer"))
        raise _refused(folder, _family(kind) or f"a model with a transformer ({kind})")
    unet = settings_in(folder / "unet" / "config.json")
    if is_xl(unet) and settings_in(folder / "model_index.json").get("requires_aesthetics_score"):
        raise _refused(folder, REFINER)
    named = unet.get("class_embed_type") or (not is_xl(unet) and unet.get("addition_embed_type"))
    if named:
        raise _refused(folder, f"a UNet with embeddings of its own ({named})")
    _check_channels(folder, unet.get("in_channels"), unet.get("out_channels"))
    for part in WEIGHED:
        for ending in ("*.safetensors", "*.bin"):
            for path in sorted((folder / part).glob(ending)):
                check_whole(path)


def is_xl(unet: Mapping[str, Any]) -> bool:
    """Whether settings of a UNet are of Stable Diffusion XL: it is given a pooled text and sizes."""
    return unet.get("addition_embed_type") == "text_time"


def is_xl_file(path: Path) -> bool:
    """Whether a single file is of Stable Diffusion XL; of a pickle nobody knows."""
    return path.suffix == ".safetensors" and any(key.startswith(XL_KEYS) for key in tensor_shapes(path))


def _check_single_file(path: Path) -> None:
    check_whole(path)
    if path.suffix != ".safetensors":
        return
    shapes = tensor_shapes(path)
    for start, name in ORIGINAL_KEYS:
        if any(key.startswith(start) for key in shapes):
            raise _refused(path, name)
    has_labels = any(key.startswith(f"{UNET_PREFIX}label_emb.") for key in shapes)
    if has_labels and not any(key.startswith(XL_KEYS) for key in shapes):
        raise _refused(path, "a UNet with embeddings of its own (label_emb)")
    if not any(key.startswith(UNET_PREFIX) for key in shapes):
        raise ConfigError(f"model.checkpoint {path} holds no unet{_other(shapes)}")
    first = shapes.get(FIRST_LAYER, ())
    _check_channels(path, first[1] if len(first) == 4 else None, 4)


def _other(keys: Iterable[str]) -> str:
    """What a file is instead of a checkpoint, if that can be told."""
    names = list(keys)
    for starts, what in OTHER_FILES:
        if any(name.startswith(starts) for name in names):
            return f" but {what}"
    return ""


def _check_channels(place: Path, taken: object, given: object) -> None:
    """Of latents, into and out of the UNet."""
    if isinstance(taken, int) and taken != given and taken in CHANNELS:
        raise _refused(place, f"{CHANNELS[taken]} ({taken} channels into the UNet)")


def _refused(place: Path, name: str) -> ConfigError:
    return ConfigError(f"model.checkpoint {place} is {name}, which is not supported: {TAKE_INSTEAD}")


def _family(kind: str) -> str:
    return next((name for start, name in PIPELINES if kind.startswith(start)), "")


def tensor_shapes(path: Path) -> dict[str, tuple[int, ...]]:
    """Of every tensor in a .safetensors file. Raises ConfigError for one that is none, or is cut short."""
    return {name: tuple(said["shape"]) for name, said in _header(path).items()}


def check_whole(path: Path) -> None:
    """Raises ConfigError for a file of weights whose end, or more, is missing."""
    if path.suffix == ".safetensors":
        _header(path)
    elif _start(path).startswith(ZIP) and not zipfile.is_zipfile(path):
        raise ConfigError(f"{path} is cut short: its end is missing; fetch it again")


def _start(path: Path) -> bytes:
    """First bytes of a file. Raises ConfigError for what git leaves in place of a large one."""
    try:
        with path.open("rb") as file:
            start = file.read(len(POINTER))
    except OSError as error:
        raise ConfigError(f"{path}: {error.strerror}") from None
    if start == POINTER:
        raise ConfigError(f"{path} is a Git LFS pointer, not the weights that it stands for: git lfs pull")
    return start


def _header(path: Path) -> Mapping[str, Any]:
    _start(path)
    try:
        size = path.stat().st_size
        with path.open("rb") as file:
            (length,) = struct.unpack("<Q", file.read(8))
            if not 2 <= length <= MAX_HEADER_BYTES:
                raise ConfigError(f"{path} is no .safetensors file")
            if 8 + length > size:
                raise _cut_short(path, size, 8 + length)
            header = json.loads(file.read(length))
        header.pop("__metadata__", None)
        end = 8 + length + max((said["data_offsets"][1] for said in header.values()), default=0)
    except ConfigError:  # It is a ValueError, too.
        raise
    except struct.error:
        raise _cut_short(path, size, 8) from None
    except OSError as error:
        raise ConfigError(f"{path}: {error.strerror}") from None
    except (ValueError, LookupError, TypeError, AttributeError):
        raise ConfigError(f"{path} is no .safetensors file") from None
    if end > size:
        raise _cut_short(path, size, end)
    return dict(header)


def _cut_short(path: Path, size: int, needed: int) -> ConfigError:
    return ConfigError(f"{path} is cut short: {size} bytes of at least {needed} are there; fetch it again")
