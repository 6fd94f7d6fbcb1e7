"""Where weights lie and in which format: diffusers folders, single files, ids on the Hugging Face hub.

Owns paths, downloads and the keys of the original Stable Diffusion layout; `checkpoint.py` makes networks
of them, and `motion_formats.py` knows the layouts of motion modules. What is missing, unreachable or
unreadable is a ConfigError that names the option. Pickles are only ever read as plain weights.
"""

from __future__ import annotations

import json
import pickle
import struct
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from rearview.contract.card import checkpoint_folder, is_hub_id, is_single_file, own_motion, settings_in
from rearview.contract.controls import ControlPicture
from rearview.contract.family import check_checkpoint, check_folder, check_whole, is_xl, is_xl_file
from rearview.engine.weights.places import existing_file, find_file, folder_with_config, hub_folder
from rearview.engine.weights.vae_formats import SingleVae, find_single_vae
from rearview.errors import ConfigError

__all__ = [
    "Additions",
    "ControlFile",
    "LoraFile",
    "ReferenceFile",
    "Source",
    "find_checkpoint",
    "find_control",
    "find_depth",
    "find_lora",
    "find_motion",
    "from_original",
    "read_config",
    "read_pickle",
    "read_weights",
]

SD15_CONFIG = "stable-diffusion-v1-5/stable-diffusion-v1-5"
XL_CONFIG = "stabilityai/stable-diffusion-xl-base-1.0"
"""Of single files of Stable Diffusion XL, where no other is named."""
LORA_NAMES = ("pytorch_lora_weights.safetensors", "adapter_model.safetensors")
"""Under which diffusers and peft save a LoRA."""
SETTINGS_FILES = ("rearview.json", "model_index.json", "*/*.json", "tokenizer*/*.txt")
TEXT_ENCODERS = ("text_encoder", "text_encoder_2")
WEIGHT_NAMES = {
    **dict.fromkeys(("unet", "vae", "motion_adapter"), "diffusion_pytorch_model"),
    **dict.fromkeys(TEXT_ENCODERS, "model"),
}
PICKLE_NAMES = {**WEIGHT_NAMES, **dict.fromkeys(TEXT_ENCODERS, "pytorch_model")}
HUB_ENDINGS = (
    (".safetensors", "-0*.safetensors"),
    (".fp16.safetensors", ".fp16-0*.safetensors", "-0*.fp16.safetensors"),
)
"""Of the weights on the hub, in full precision if there is any."""
PICKLE_ENDINGS = (".bin", "-0*.bin", ".fp16.bin", ".fp16-0*.bin", "-0*.fp16.bin")

READING_ERRORS = (
    *(OSError, EOFError, RuntimeError, ValueError, LookupError, AssertionError),
    *(SafetensorError, struct.error),
)
"""What readers of weights raise over files that are broken or of something else."""


@dataclass(frozen=True, slots=True)
class LoraFile:
    """A LoRA to apply."""

    path: str
    """File, folder, or on the hub owner/name[/file]."""
    scale: float = 1.0


@dataclass(frozen=True, slots=True)
class ControlFile:
    """A ControlNet, and what it is shown."""

    path: str
    """Folder or hub id."""
    picture: ControlPicture
    depth: str = ""
    """Folder or hub id of a DPTForDepthEstimation, for one that is shown depth, and only for that."""


@dataclass(frozen=True, slots=True)
class ReferenceFile:
    """An adapter for reference images."""

    path: str
    """File, or on the hub owner/name/file."""
    image_encoder: str
    """Folder, or on the hub owner/name[/folder]."""


@dataclass(frozen=True, slots=True)
class Additions:
    """What replaces parts of a checkpoint or is added to it."""

    vae: str = ""
    """Folder, file or hub id of a VAE to use instead of the checkpoint's own. Empty: its own."""
    lcm_lora: str = ""
    """LoRA that is fused into the weights, for few-step sampling. Empty: none."""
    adapters: Mapping[str, Sequence[LoraFile]] = field(default_factory=dict)
    """Named adapter sets that rows of one forward may differ in, each at a weight of its own."""
    merged: Mapping[str, Sequence[LoraFile]] = field(default_factory=dict)
    """Further ones, merged into weights: a row has one of them at most, and forwards are its own."""
    single_file_config: str = SD15_CONFIG
    """Folder or hub id in diffusers format with settings and tokenizer for a single-file checkpoint."""
    motion: str = ""
    """Motion modules: file, folder, or on the hub owner/name[/file]. Empty: the checkpoint's own, if any."""
    depth: str = ""
    """Folder or hub id of a DPTForDepthEstimation, for motion modules with a depth branch. Empty: none."""
    beta_schedule: str = ""
    """Noise schedule instead of the checkpoint's. Empty: its own."""
    controls: Mapping[str, ControlFile] = field(default_factory=dict)
    """ControlNets by the names by which sessions ask for them."""
    clip_skip: int = 0
    """Last layers of the text encoder that are left out."""
    reference: ReferenceFile | None = None
    """None: sessions have no reference images."""


@dataclass(frozen=True, slots=True)
class Source:
    """Where the parts of one checkpoint lie, on this machine."""

    folder: Path
    """In diffusers format: the settings of every part and, without `file`, the weights."""
    file: Path | None = None
    """Weights of all networks in the original Stable Diffusion layout."""
    vae: Path | None = None
    """Folder of another VAE."""
    single_vae: SingleVae | None = None
    """Another VAE that has no folder."""
    motion: Path | None = None
    """Folder or file of the motion modules."""

    @property
    def is_xl(self) -> bool:
        """Whether the UNet is one of Stable Diffusion XL."""
        return is_xl(settings_in(self.folder / "unet" / "config.json"))

    def place(self, part: str) -> Path:
        """Folder of a part, or the file of a VAE. Raises ConfigError if there is none."""
        if part == "vae" and self.single_vae is not None:
            return self.single_vae.files[0]
        folder = self.vae if part == "vae" and self.vae is not None else self.folder / part
        if not folder.is_dir():
            raise ConfigError(f"{self.folder} has no part {part}: name another one in model.checkpoint")
        return folder

    def config(self, part: str, name: str = "config.json") -> dict[str, Any]:
        """The settings of a part. Raises ConfigError."""
        if part == "vae" and self.single_vae is not None:
            return dict(self.single_vae.config)
        return read_config(self.place(part) / name)

    def single_file(self, part: str) -> Path | None:
        """The file with the weights of a part, if they are not in its folder."""
        return None if part == "vae" and self.vae is not None else self.file


def find_checkpoint(checkpoint: str, parts: Sequence[str] = (), additions: Additions | None = None) -> Source:
    """A bundled name, a folder, a single file or a hub id. Raises ConfigError.

    From the hub come the settings of every part and the weights of `parts`; what is cached is not
    downloaded again. Motion modules are part of the UNet.
    """
    additions = additions or Additions()
    single_vae = find_single_vae(additions.vae) if additions.vae else None
    vae = _find_vae(additions.vae) if additions.vae and single_vae is None else None
    motion = find_motion(checkpoint, additions.motion) if "unet" in parts else None
    others = vae, single_vae, motion
    parts = [part for part in parts if part != "vae" or not additions.vae]
    if is_single_file(checkpoint):
        file = existing_file("model.checkpoint", Path(checkpoint))
        check_checkpoint(checkpoint)
        settings = additions.single_file_config
        settings = XL_CONFIG if settings == SD15_CONFIG and is_xl_file(file) else settings
        return _of_family(Source(_find_folder("model.single_file_config", settings, ()), file, *others))
    folder = _find_folder("model.checkpoint", checkpoint, parts)
    check_folder(folder)
    return _of_family(Source(folder, None, *others))


def _of_family(source: Source) -> Source:
    """With the settings of another VAE that only the UNet tells. Raises ConfigError for another family's."""
    single = source.single_vae
    if single is None or not source.is_xl:
        return source
    return replace(source, single_vae=single.of_xl())


def find_lora(option: str, path: str) -> Path:
    """The file of a LoRA. Raises ConfigError."""
    place = Path(path)
    if place.is_dir():
        return _lora_in(option, place)
    if is_hub_id(path):
        return _lora_in(option, hub_folder(option, path, ("*.safetensors", "adapter_config.json")))
    return find_file(option, path)


def find_motion(checkpoint: str, motion: str) -> Path | None:
    """A file in an original layout, or a folder in that of diffusers' MotionAdapter. Empty: the
    checkpoint's own, None if it has none. Raises ConfigError.
    """
    if not motion:
        return own_motion(checkpoint)
    place = Path(motion)
    if is_hub_id(motion):
        names = ("config.json", f"{WEIGHT_NAMES['motion_adapter']}.safetensors")
        wanted = (*names, *(f"motion_adapter/{name}" for name in names))
        place = hub_folder("model.motion", motion, wanted)
    elif not place.is_dir():
        return find_file("model.motion", motion)
    return folder_with_config("model.motion", motion, (place, place / "motion_adapter"), "a MotionAdapter")


def find_depth(depth: str, option: str = "model.depth") -> Path:
    """Folder of a depth model in transformers' format. Raises ConfigError that names the option."""
    place = Path(depth)
    if is_hub_id(depth):
        place = hub_folder(option, depth, ("config.json", "model.safetensors"))
        if not _has_safetensors(place):
            place = hub_folder(option, depth, ("config.json", "pytorch_model.bin"))
    return folder_with_config(option, depth, (place,), "a DPTForDepthEstimation")


def find_control(option: str, control: str) -> Path:
    """Folder of a ControlNet in diffusers' format. Raises ConfigError that names the option."""
    place, name = Path(control), WEIGHT_NAMES["unet"]
    if is_hub_id(control):
        for ending in (".safetensors", ".fp16.safetensors", ".bin"):
            place = hub_folder(option, control, ("config.json", f"{name}{ending}"))
            if any(place.glob(f"{name}*")):
                break
    return folder_with_config(option, control, (place,), "a ControlNetModel")


def read_config(path: Path) -> dict[str, Any]:
    """A JSON object. Raises ConfigError."""
    try:
        content: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ConfigError(f"{path}: {error}") from None
    if not isinstance(content, dict):
        raise ConfigError(f"{path}: not a JSON object")
    return content


def read_weights(path: Path) -> tuple[dict[str, Tensor], Mapping[str, str]]:
    """Tensors and metadata of a .safetensors file, or of a pickle that holds nothing else, on the CPU.

    Raises ConfigError: a pickle with anything but weights in it could run code, and is not read.
    """
    if path.suffix == ".safetensors":
        try:
            check_whole(path)
            with safe_open(path, framework="pt") as file:
                return {key: file.get_tensor(key) for key in file.keys()}, file.metadata() or {}  # noqa: SIM118
        except READING_ERRORS as error:
            raise ConfigError(f"{path}: {error}") from None
    content = read_pickle(path)
    content = content.get("state_dict", content) if isinstance(content, dict) else None
    items = content.items() if isinstance(content, dict) else ()
    weights = {str(key): value for key, value in items if isinstance(value, Tensor)}
    if not weights:
        raise ConfigError(f"{path} holds no weights")
    return weights, {}


def read_pickle(path: Path) -> Any:
    """What a pickle of weights holds, on the CPU. Raises ConfigError as `read_weights` does."""
    try:
        check_whole(path)
        return torch.load(path, map_location="cpu", weights_only=True)
    except READING_ERRORS as error:
        raise ConfigError(f"{path}: {error}") from None
    except pickle.UnpicklingError:
        raise ConfigError(f"{path} holds more than weights: convert it to .safetensors") from None


def from_original(part: str, weights: Mapping[str, Tensor], config: Mapping[str, Any]) -> dict[str, Tensor]:
    """The weights of one part of a file in the original layout, under diffusers' keys; empty if not there.

    The keys of a text encoder keep the prefix `text_model.`.
    """
    from diffusers.loaders import single_file_utils as original

    if part == "unet":
        converted = original.convert_ldm_unet_checkpoint(dict(weights), config)
    elif part == "vae":
        prefixes = tuple(prefix for prefix in original.LDM_VAE_KEYS if prefix)
        held = {key: value for key, value in weights.items() if key.startswith(prefixes)}
        if not held and "decoder.conv_in.weight" in weights:  # A file of a VAE alone.
            held = dict(weights)
        converted = original.convert_ldm_vae_checkpoint(held, config) if held else {}
    elif part == "text_encoder_2":
        converted = _from_open_clip(weights, config, "conditioner.embedders.1.model.")
    elif original.is_open_clip_model(weights):
        converted = _from_open_clip(weights, config, "cond_stage_model.model.")
        converted = {key: value for key, value in converted.items() if key.startswith("text_model.")}
    else:
        converted = original.convert_ldm_clip_checkpoint(dict(weights))
    # A checkpoint of another depth makes the converter look up keys that are not there.
    return {key: value for key, value in converted.items() if value is not None}


def _from_open_clip(
    weights: Mapping[str, Tensor], config: Mapping[str, Any], prefix: str
) -> dict[str, Tensor]:
    """The text encoder of Stable Diffusion 2, and the second one of XL."""
    from diffusers.loaders.single_file_utils import convert_open_clip_checkpoint

    # All that the converter reads of the module.
    module = SimpleNamespace(config=SimpleNamespace(hidden_size=config["hidden_size"]))
    converted: dict[str, Tensor] = convert_open_clip_checkpoint(module, dict(weights), prefix)
    return converted


def _find_folder(option: str, name: str, parts: Sequence[str]) -> Path:
    return _hub_checkpoint(option, name, parts) if is_hub_id(name) else checkpoint_folder(name, option)


def _find_vae(vae: str) -> Path:
    folder = Path(vae)
    if is_hub_id(vae):
        names = ("config.json", "diffusion_pytorch_model.safetensors")
        folder = hub_folder("model.vae", vae, (*names, *(f"vae/{name}" for name in names)))
    return folder_with_config("model.vae", vae, (folder, folder / "vae"), "a VAE")


def _lora_in(option: str, folder: Path) -> Path:
    known = [folder / name for name in LORA_NAMES if (folder / name).is_file()]
    found = known[:1] or sorted(folder.glob("*.safetensors"))
    if len(found) != 1:
        names = ", ".join(file.name for file in found) or "no .safetensors file"
        raise ConfigError(f"{option}: {folder} has {names}: name one file")
    return found[0]


def _hub_checkpoint(option: str, repo: str, parts: Sequence[str]) -> Path:
    """Settings, and once they are of a supported family the weights of `parts`: as safetensors, in full
    precision or else in half, else pickled.
    """
    folder = hub_folder(option, repo, SETTINGS_FILES)
    check_folder(folder)
    missing = list(parts)
    if "text_encoder" in missing and (folder / "text_encoder_2").is_dir():
        missing.append("text_encoder_2")
    for endings in HUB_ENDINGS:
        if missing:
            names = [f"{part}/{WEIGHT_NAMES[part]}{end}" for part in missing for end in endings]
            folder = hub_folder(option, repo, names)
            missing = [part for part in missing if not _has_safetensors(folder / part)]
    pickled = [f"{part}/{PICKLE_NAMES[part]}{end}" for part in missing for end in PICKLE_ENDINGS]
    return hub_folder(option, repo, pickled) if pickled else folder


def _has_safetensors(folder: Path) -> bool:
    return any(folder.glob("*.safetensors"))
