"""A diffusers-format checkpoint folder to a model, loading only the networks that a span needs."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch

from rearview.engine.card import NULL_CHECKPOINT, checkpoint_folder
from rearview.engine.chain import OperatorKind, Span
from rearview.engine.conditioning import Conditioning
from rearview.engine.model import DiffusionModel, Model, NullModel
from rearview.engine.operators.denoise import Denoiser
from rearview.engine.sampling import Schedule
from rearview.errors import ConfigError

__all__ = ["latent_shape", "load_denoiser", "load_model", "load_vae", "pick_device", "pick_dtype"]


def pick_device(name: str) -> torch.device:
    """`auto`: CUDA if there is any, else the CPU."""
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    return torch.device(name)


def pick_dtype(name: str, device: torch.device) -> torch.dtype:
    """`auto`: float16 on CUDA; bfloat16 on CPUs that multiply it in hardware; else float32."""
    if name != "auto":
        dtype: torch.dtype = getattr(torch, name)
        return dtype
    if device.type == "cuda":
        return torch.float16
    return torch.bfloat16 if torch.ops.mkldnn._is_mkldnn_bf16_supported() and _has_bf16() else torch.float32


def _has_bf16() -> bool:
    """Whether the CPU multiplies bfloat16 in hardware; emulated, it is slower than float32."""
    capability = torch.backends.cpu.get_cpu_capability()
    flags = Path("/proc/cpuinfo")
    return capability.startswith("AVX512") and flags.exists() and "avx512_bf16" in flags.read_text()


def load_model(checkpoint: str, span: Span, device: torch.device, dtype: torch.dtype) -> Model:
    """The model of a span. Raises ConfigError if the folder lacks something."""
    if checkpoint == NULL_CHECKPOINT:
        return NullModel()
    _quiet_libraries()
    folder = checkpoint_folder(checkpoint)
    needs_vae = span.kinds & {OperatorKind.ENCODE, OperatorKind.DECODE}
    vae = load_vae(folder, device, dtype) if needs_vae else None
    denoiser = load_denoiser(folder, device, dtype) if OperatorKind.DENOISE in span.kinds else None
    return DiffusionModel(vae, denoiser, device=device, dtype=dtype)


def load_vae(folder: Path, device: torch.device, dtype: torch.dtype) -> Any:
    """AutoencoderTiny or AutoencoderKL, by the folder's config."""
    name = _config(folder, "vae").get("_class_name")
    if name == "AutoencoderTiny":
        from diffusers.models.autoencoders.autoencoder_tiny import AutoencoderTiny as Vae
    elif name == "AutoencoderKL":
        from diffusers.models.autoencoders.autoencoder_kl import AutoencoderKL as Vae
    else:
        raise ConfigError(f"{folder}/vae: {name} is not supported; use AutoencoderTiny or AutoencoderKL")
    return _ready(Vae.from_pretrained(folder, subfolder="vae", torch_dtype=dtype), device)


def load_denoiser(folder: Path, device: torch.device, dtype: torch.dtype) -> Denoiser:
    """UNet, text encoder, tokenizer and schedule."""
    from diffusers.models.unets.unet_2d_condition import UNet2DConditionModel
    from transformers import CLIPTextModel, CLIPTokenizer

    from rearview.engine.attention.processors import install_processors

    unet = _ready(UNet2DConditionModel.from_pretrained(folder, subfolder="unet", torch_dtype=dtype), device)
    if unet.config.time_cond_proj_dim is not None:
        raise ConfigError(f"{folder}/unet: guidance-distilled UNets (time_cond_proj_dim) are not supported")
    text_encoder = CLIPTextModel.from_pretrained(folder, subfolder="text_encoder", dtype=dtype)
    tokenizer = CLIPTokenizer.from_pretrained(folder, subfolder="tokenizer")
    conditioning = Conditioning(tokenizer, text_encoder.eval().to(device), dtype)
    schedule = Schedule(_config(folder, "scheduler", "scheduler_config.json"))
    return Denoiser(unet, schedule, conditioning, dtype, install_processors(unet))


def latent_shape(checkpoint: str, height: int, width: int) -> tuple[int, int, int]:
    """Shape (C, h, w) of a frame's latent; that of its pixels for the null model."""
    if checkpoint == NULL_CHECKPOINT:
        return 3, height, width
    config = _config(checkpoint_folder(checkpoint), "vae")
    # Both VAEs halve the size between blocks; the tiny one says so only by its number of blocks.
    scale = 2 ** (len(config.get("block_out_channels") or config["encoder_block_out_channels"]) - 1)
    return int(config["latent_channels"]), height // scale, width // scale


def _ready(network: Any, device: torch.device) -> Any:
    # channels_last is what both oneDNN and cuDNN convolve fastest in.
    return network.eval().requires_grad_(False).to(device=device, memory_format=torch.channels_last)


def _config(folder: Path, part: str, name: str = "config.json") -> dict[str, Any]:
    path = folder / part / name
    try:
        content: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ConfigError(f"{path}: {error}") from None
    return content


def _quiet_libraries() -> None:
    """Keep the model libraries' progress bars and advice out of a service's log."""
    from diffusers.utils import logging as diffusers_logging
    from transformers.utils import logging as transformers_logging

    for library in (diffusers_logging, transformers_logging):
        library.set_verbosity_error()
        library.disable_progress_bar()
