"""ControlNets from their folders. Whether one fits is told by its settings, before weights are read.

Its residuals are added to the UNet's skips one by one, so all that decides their number and shapes must be
equal, and so must be what both are given. What fits by its settings may still be of another base model of the
same layout: nothing in the files says so.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch

from rearview.engine.networks.control import ControlBranch, ControlNets
from rearview.engine.weights.formats import ControlFile, find_control, read_config
from rearview.engine.weights.loading import load_folder, ready
from rearview.errors import ConfigError

__all__ = ["check_control", "load_controls"]

SHARED: Mapping[str, Any] = {
    "in_channels": 4,
    "cross_attention_dim": 1280,
    "block_out_channels": [320, 640, 1280, 1280],
    "layers_per_block": 2,
    "addition_embed_type": None,
    "addition_time_embed_dim": None,
    "projection_class_embeddings_input_dim": None,
}
"""Settings that must be those of the UNet, with the default of both. Whether a block has attention, and how
much, changes no residual's shape: small ControlNets of Stable Diffusion XL have none."""
BLOCKS = {"CrossAttnDownBlock2D", "DownBlock2D"}
MIDDLES = ("UNetMidBlock2DCrossAttn", "UNetMidBlock2D")
PER_BLOCK = ("down_block_types", "only_cross_attention", "num_attention_heads", "attention_head_dim")
OTHERS = (
    ("class_embed_type", None, "takes classes"),
    ("num_class_embeds", None, "takes classes"),
    ("encoder_hid_dim_type", None, "projects prompts in its own way"),
    ("global_pool_conditions", False, "is shown a style, not a shape (Shuffle)"),
    ("controlnet_conditioning_channel_order", "rgb", "is shown pictures in another order of colours"),
    ("conditioning_channels", 3, "is shown pictures that have not three channels"),
)
"""Settings that must have that value, and what another one means."""


def load_controls(
    files: Mapping[str, ControlFile],
    unet: Mapping[str, Any],
    latent_scale: int,
    device: torch.device,
    dtype: torch.dtype,
) -> ControlNets:
    """Those of a deployment, by name. `unet`: the settings of its UNet; `latent_scale`: pixels per latent
    cell. Raises ConfigError for one that does not fit.
    """
    from diffusers.models.controlnets.controlnet import ControlNetModel

    found = {}
    for name, file in files.items():
        option = f"model.controls.{name}"
        folder = find_control(option, file.path)
        try:
            check_control(read_config(folder / "config.json"), unet, latent_scale)
            network = ready(load_folder(ControlNetModel, folder, dtype), device, folder)
        except ConfigError as error:
            raise ConfigError(f"{option}: {file.path}: {error}") from None
        found[name] = ControlBranch(network)
    return ControlNets(found, dtype)


def check_control(control: Mapping[str, Any], unet: Mapping[str, Any], latent_scale: int) -> None:
    """Raises ConfigError with the reason for settings of something else than a ControlNet for this UNet."""
    if (kind := control.get("_class_name")) != "ControlNetModel":
        raise ConfigError(f"{kind} is not supported; use a ControlNetModel")
    for name, expected, meaning in OTHERS:
        if (control.get(name) or expected) != expected:
            raise ConfigError(f"{name} is {control[name]}: it {meaning}, which is not supported")
    for name, default in SHARED.items():
        mine, its = control.get(name, default), unet.get(name, default)
        if _plain(mine) != _plain(its):
            text = f"{name} is {_told(mine)}, the UNet's {_told(its)}: is it of another base model?"
            raise ConfigError(text)
    if others := {*control.get("down_block_types", BLOCKS)} - BLOCKS:
        raise ConfigError(f"its blocks are {_told(sorted(others))}, which are not supported")
    if (middle := control.get("mid_block_type") or MIDDLES[0]) not in MIDDLES:
        raise ConfigError(f"its middle block is {middle}, which is not supported")
    levels = len(control.get("block_out_channels", SHARED["block_out_channels"]))
    for name in PER_BLOCK:
        if isinstance(listed := control.get(name, ()), (list, tuple)) and len(listed) not in (0, levels):
            raise ConfigError(f"{name} has {len(listed)} entries for {levels} blocks")
    widths = control.get("conditioning_embedding_out_channels") or (16, 32, 96, 256)
    if (scale := 2 ** (len(widths) - 1)) != latent_scale:
        raise ConfigError(f"it makes a latent cell of {scale} pixels, the VAE of {latent_scale}")


def _plain(value: Any) -> Any:
    return list(value) if isinstance(value, (list, tuple)) else value


def _told(value: Any) -> str:
    return ", ".join(map(str, value)) if isinstance(value, (list, tuple)) else str(value)
