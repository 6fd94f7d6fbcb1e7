"""A checkpoint to a model, loading only the networks that a span needs.

Where the weights lie is `formats.py`, what is merged into them `adapters.py`. Whatever a checkpoint lacks
is a ConfigError at start: no network runs with weights that were not loaded.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from rearview.contract.card import NULL_CHECKPOINT, is_chain, is_opaque, own_motion
from rearview.contract.chain import OperatorKind, Span
from rearview.contract.controls import ControlPicture
from rearview.contract.sampler import sampler_of
from rearview.engine.networks.chain import ChainModel, ForwardTime
from rearview.engine.networks.control_pictures import ControlPictures
from rearview.engine.networks.denoise import Denoiser
from rearview.engine.networks.depth import DepthEstimator
from rearview.engine.networks.low_rank import take_choices
from rearview.engine.networks.model import DiffusionModel, Model, NullModel
from rearview.engine.networks.noise import NoiseStore
from rearview.engine.networks.pooled import PooledText
from rearview.engine.networks.reference_image import take_references
from rearview.engine.networks.sampling import Schedule
from rearview.engine.weights.adapters import NO_ADAPTERS, AdapterSets, Switched, merge_adapters
from rearview.engine.weights.controls import load_controls
from rearview.engine.weights.formats import (
    Additions,
    LoraFile,
    Source,
    find_checkpoint,
    find_depth,
    from_original,
    read_config,
    read_weights,
)
from rearview.engine.weights.loading import assigned, checked, load_network, local, quiet_libraries, ready
from rearview.engine.weights.motion_formats import is_motion, is_table, read_motion
from rearview.engine.weights.reference_images import load_references
from rearview.engine.weights.stacks import stack_adapters
from rearview.engine.weights.text_encoders import load_text_encoders
from rearview.engine.weights.vae_formats import SingleVae
from rearview.errors import ConfigError

__all__ = [
    "latent_shape",
    "load_denoiser",
    "load_denoisers",
    "load_depth",
    "load_model",
    "load_vae",
]


NO_MOTION_IN_XL = "motion modules (Live2Diff) are of Stable Diffusion 1.x, and do not fit Stable Diffusion XL"
UNREACHED_IN_DPT = "neck.fusion_stage.layers.0.residual_layer1."
"""The first fusion has no residual to add: published files leave these weights out."""


def load_model(
    checkpoint: str,
    span: Span,
    device: torch.device,
    dtype: torch.dtype,
    additions: Additions | None = None,
    noise: NoiseStore | None = None,
) -> Model:
    """The model of a span. Raises ConfigError that names the option if something is missing or unusable.
    `noise`: draws what its steps need; None: as it is needed.
    """
    if checkpoint == NULL_CHECKPOINT:
        return NullModel()
    if is_chain(checkpoint):
        return ChainModel(ForwardTime.parse(checkpoint))
    quiet_libraries()
    additions = additions or Additions()
    needs_vae = bool(span.kinds & {OperatorKind.ENCODE, OperatorKind.DECODE})
    needs_unet = OperatorKind.DENOISE in span.kinds
    parts = [*(["vae"] if needs_vae else []), *(["unet", "text_encoder"] if needs_unet else [])]
    source = find_checkpoint(checkpoint, parts, additions)
    _check_vae_fits(source)
    vae = load_vae(source, device, dtype) if needs_vae else None
    needs_depth = OperatorKind.ENCODE in span.kinds and bool(additions.depth)
    depth = load_depth(additions.depth, device, dtype) if needs_depth else None
    denoisers = load_denoisers(source, device, dtype, additions, noise) if needs_unet else {}
    pictures = _pictures(additions, depth, device, dtype) if OperatorKind.ENCODE in span.kinds else None
    plain = denoisers.pop(NO_ADAPTERS, None)
    return DiffusionModel(
        vae, plain, device=device, dtype=dtype, adapted=denoisers, depth=depth, pictures=pictures
    )


def load_vae(place: Source | Path, device: torch.device, dtype: torch.dtype) -> Any:
    """AutoencoderTiny or AutoencoderKL, by its config. `place`: a Path is a checkpoint folder."""
    source = _source(place)
    name = source.config("vae").get("_class_name")
    if name == "AutoencoderTiny":
        from diffusers.models.autoencoders.autoencoder_tiny import AutoencoderTiny as Vae
    elif name == "AutoencoderKL":
        from diffusers.models.autoencoders.autoencoder_kl import AutoencoderKL as Vae
    else:
        text = f"{name} is not supported; use AutoencoderTiny or AutoencoderKL"
        raise ConfigError(f"{source.place('vae')}: {text}")
    if source.config("vae").get("latents_mean") is not None:
        text = "latents_mean is not supported: name another VAE in model.vae"
        raise ConfigError(f"{source.place('vae')}: {text}")
    dtype = _vae_dtype(source, name, dtype)
    if source.single_vae is not None:
        return ready(_load_single_vae(Vae, source.single_vae, dtype), device, source.place("vae"))
    if source.single_file("vae") is not None and name != "AutoencoderKL":
        raise ConfigError("a single file holds an AutoencoderKL: name another VAE in model.vae")
    return ready(load_network(Vae, source, "vae", dtype), device, source.place("vae"))


def _vae_dtype(source: Source, name: str, dtype: torch.dtype) -> torch.dtype:
    """Stable Diffusion XL's own overflows in float16, and says so: as diffusers does, run it in float32."""
    upcast = source.config("vae").get("force_upcast", name == "AutoencoderKL")
    return torch.float32 if source.is_xl and upcast and dtype is torch.float16 else dtype


def _load_single_vae(network: Any, vae: SingleVae, dtype: torch.dtype) -> Any:
    parts = [read_weights(file)[0] for file in vae.files]
    weights = (
        vae.taesd((parts[0], parts[1])) if len(parts) == 2 else from_original("vae", parts[0], vae.config)
    )
    with torch.device("meta"):
        empty = network.from_config(vae.config)
    return assigned(empty, weights, dtype, f"model.vae: {vae.files[0]} cannot be loaded")


def load_depth(
    depth: str, device: torch.device, dtype: torch.dtype, option: str = "model.depth"
) -> DepthEstimator:
    """A DPTForDepthEstimation of any backbone. `depth`: folder or hub id. Raises ConfigError that names the
    option.
    """
    from transformers import DPTForDepthEstimation

    folder = find_depth(depth, option)
    try:
        if (kind := read_config(folder / "config.json").get("model_type")) != "dpt":
            raise ConfigError(f"{folder}: {kind} is not supported; use a DPTForDepthEstimation")
        network, report = local(
            DPTForDepthEstimation.from_pretrained, folder, dtype=dtype, output_loading_info=True
        )
        needed = [key for key in report["missing_keys"] if not key.startswith(UNREACHED_IN_DPT)]
        network = ready(checked(network, folder, needed), device, folder, UNREACHED_IN_DPT)
        return DepthEstimator(network, _input_size(network.config, folder), dtype)
    except ConfigError as error:
        raise ConfigError(f"{option}: {error}") from None


def _pictures(
    additions: Additions, depth: DepthEstimator | None, device: torch.device, dtype: torch.dtype
) -> ControlPictures:
    """`depth`: that of `additions.depth`, for controls that name the same."""
    known = {} if depth is None else {additions.depth: depth}
    depths = {}
    for name, file in additions.controls.items():
        if file.picture is ControlPicture.DEPTH:
            if file.depth not in known:
                known[file.depth] = load_depth(file.depth, device, dtype, f"model.controls.{name}.depth")
            depths[name] = known[file.depth]
    kinds = {name: file.picture for name, file in additions.controls.items()}
    return ControlPictures(kinds, depths, dtype)


def _input_size(config: Any, folder: Path) -> tuple[int, int]:
    """Height and width of the pictures that a depth model was trained on: 384 by 384 in MiDaS v3."""
    size = config.image_size or getattr(config.backbone_config, "image_size", None)
    if isinstance(size, int):
        return size, size
    if size is None or len(size) != 2:
        raise ConfigError(f"{folder} says no image_size")
    return int(size[0]), int(size[1])


def load_denoiser(place: Source | Path, device: torch.device, dtype: torch.dtype) -> Denoiser:
    """UNet, text encoder, tokenizer and schedule, without adapters."""
    return load_denoisers(place, device, dtype, Additions())[NO_ADAPTERS]


def load_denoisers(
    place: Source | Path,
    device: torch.device,
    dtype: torch.dtype,
    additions: Additions,
    noise: NoiseStore | None = None,
) -> dict[str, Denoiser]:
    """One denoiser per merged adapter set, and `NO_ADAPTERS` for all others, over one UNet, one text encoder,
    one `noise`.

    The UNet is a StreamingUNet where there are motion modules. No adapter touches those.
    """
    from diffusers.models.unets.unet_2d_condition import UNet2DConditionModel

    from rearview.engine.networks.attention.processors import install_processors

    source = _source(place)
    schedule = _schedule(source, additions)
    if (name := source.config("unet").get("_class_name")) != "UNet2DConditionModel":
        raise ConfigError(f"{source.place('unet')}: {name} is not supported; use UNet2DConditionModel")
    unet = ready(load_network(UNet2DConditionModel, source, "unet", dtype), device, source.place("unet"))
    texts = load_text_encoders(source, device, dtype, additions.clip_skip)
    fused = [LoraFile(additions.lcm_lora)] if additions.lcm_lora else []
    sets = merge_adapters(unet, texts.networks, fused, additions.merged)
    stacks, choice, text_choice = stack_adapters(unet, texts.networks, additions.adapters)
    references = given = None
    if additions.reference is not None:
        references, given = load_references(additions.reference, unet, device, dtype)
    layout = install_processors(unet)
    if additions.depth and source.motion is None:
        raise ConfigError("model.depth is for motion modules, and there are none: name them in model.motion")
    if source.motion is not None:
        if source.is_xl:
            raise ConfigError(f"{source.motion}: {NO_MOTION_IN_XL}")
        unet = ready(_with_motion(unet, source.motion, additions, dtype), device, source.motion)

    noise = noise or NoiseStore()
    if additions.adapters:
        take_choices(unet, choice)
        for network in texts.networks:
            take_choices(network, text_choice)
    if given is not None:
        take_references(unet, given)
    cell = _cell(source.config("vae"))
    controls = load_controls(additions.controls, source.config("unet"), cell, device, dtype)
    text = PooledText(unet.config, cell) if source.is_xl else None

    def under(name: str) -> Denoiser:
        conditioning = texts.conditioning(lambda network: _switched(network, sets, name), stacks)
        network = _switched(unet, sets, name)
        return Denoiser(network, schedule, conditioning, dtype, layout, noise, controls, text, references)

    return {name: under(name) for name in sets.names}


def latent_shape(
    checkpoint: str, height: int, width: int, additions: Additions | None = None
) -> tuple[int, int, int]:
    """Shape (C, h, w) of a frame's latent; that of its pixels where there are no networks."""
    if is_opaque(checkpoint):
        return 3, height, width
    config = find_checkpoint(checkpoint, (), additions).config("vae")
    cell = _cell(config)
    return int(config["latent_channels"]), height // cell, width // cell


def _cell(vae_config: Mapping[str, Any]) -> int:
    """Pixels per latent cell, a side."""
    # Both VAEs halve the size between blocks; the tiny one says so only by its number of blocks.
    blocks = vae_config.get("block_out_channels") or vae_config["encoder_block_out_channels"]
    return int(2 ** (len(blocks) - 1))


def _source(place: Source | Path) -> Source:
    return place if isinstance(place, Source) else Source(place, motion=own_motion(str(place)))


def _schedule(source: Source, additions: Additions) -> Schedule:
    config = source.config("scheduler", "scheduler_config.json")
    if additions.beta_schedule:
        config = {**config, "beta_schedule": additions.beta_schedule}
    return Schedule(config, sampler_of(config, lcm_lora=bool(additions.lcm_lora)))


def _with_motion(unet: Any, path: Path, additions: Additions, dtype: torch.dtype) -> Any:
    """A StreamingUNet over `unet`, with all the weights in `path` and no others."""
    from rearview.engine.networks.unet import StreamingUNet

    motion = read_motion(path)
    if motion.has_depth != bool(additions.depth):
        has = "were trained with depth: name a DPT model" if motion.has_depth else "know no depth: name none"
        raise ConfigError(f"the motion modules in {path} {has} in model.depth")
    try:
        streaming = StreamingUNet(
            unet,
            heads=motion.heads,
            norm_groups=motion.norm_groups or unet.config.norm_num_groups,
            max_frames=motion.max_frames,
            depth=motion.has_depth,
        )
    except ValueError as error:
        raise ConfigError(f"model.motion: {path}: {error}") from None
    expected = {
        key: value for key, value in streaming.state_dict().items() if is_motion(key) and not is_table(key)
    }
    _check_same(path, motion.tensors, expected)
    weights = {key: value.to(dtype) for key, value in motion.tensors.items()}
    streaming.load_state_dict(weights, strict=False, assign=True)
    return streaming


def _check_same(path: Path, found: Mapping[str, torch.Tensor], expected: Mapping[str, torch.Tensor]) -> None:
    """Raises ConfigError unless names and shapes are those of this UNet."""
    for names, verb in ((expected.keys() - found.keys(), "lacks"), (found.keys() - expected.keys(), "has")):
        if names:
            text = f"{verb} {len(names)} weights that the UNet has{'' if verb == 'lacks' else ' not'}"
            raise ConfigError(f"model.motion: {path} {text}, for instance {min(names)}")
    for key, value in found.items():
        if value.shape != expected[key].shape:
            text = f"{key} is {tuple(value.shape)}, the UNet's {tuple(expected[key].shape)}"
            raise ConfigError(f"model.motion: {path}: {text}: is it of another base model?")


def _switched(network: Any, sets: AdapterSets, name: str) -> Any:
    return network if len(sets.names) == 1 else Switched(network, sets, name)


def _check_vae_fits(source: Source) -> None:
    latent, taken = source.config("vae").get("latent_channels"), source.config("unet").get("in_channels")
    if latent != taken:
        text = f"makes latents of {latent} channels, the UNet takes {taken}"
        raise ConfigError(f"the VAE in {source.place('vae')} {text}: name another one in model.vae")
