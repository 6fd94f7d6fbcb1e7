"""Tiny random ControlNets for the UNets of tiny checkpoints: nothing in them is zero, so that they act."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from diffusers import ControlNetModel, UNet2DConditionModel
from rearview.contract.controls import ControlPicture, WeightedControl
from rearview.contract.frame import CONTROL, PICTURE
from rearview.contract.settings import Settings
from rearview.engine.networks.control_pictures import ControlPictures
from rearview.engine.weights.formats import ControlFile
from torch import Tensor, nn

GAIN = 1.5
"""Of what starts at zero, by its fan-in: a control moves the picture well."""


def write_tiny_control(folder: Path, checkpoint: Path, seed: int = 0, gain: float = GAIN) -> Path:
    """A ControlNet for the UNet of `checkpoint`, with weights of its own."""
    unet = UNet2DConditionModel.from_pretrained(checkpoint, subfolder="unet")
    torch.manual_seed(seed + 100)
    network = ControlNetModel.from_unet(unet, load_weights_from_unet=False)
    filled(network, gain).save_pretrained(folder)
    return folder


@torch.no_grad()
def filled(network: Any, gain: float = GAIN) -> Any:
    """The same, without zero convolutions."""
    for convolution in (
        *network.controlnet_down_blocks,
        network.controlnet_mid_block,
        network.controlnet_cond_embedding.conv_out,
    ):
        assert isinstance(convolution, nn.Conv2d)
        assert not convolution.weight.any(), "it starts at zero"
        std = gain / convolution.weight[0].numel() ** 0.5
        convolution.weight.normal_(std=std)
        convolution.bias.normal_(std=0.1)
    return network


PICTURES = {"edges": ControlPicture.SOFT_EDGES, "pose": ControlPicture.SENT, "tile": ControlPicture.TILE}


def control_files(folder: Path, checkpoint: Path) -> Mapping[str, ControlFile]:
    """Three ControlNets of a deployment, written into `folder`."""
    return {
        name: ControlFile(str(write_tiny_control(folder / name, checkpoint, seed)), picture)
        for seed, (name, picture) in enumerate(PICTURES.items())
    }


def controlled(*controls: tuple[str, float]) -> tuple[WeightedControl, ...]:
    """As `Settings.controls`."""
    return tuple(WeightedControl(name, weight) for name, weight in controls)


def shown_to(settings: Settings, planes: Mapping[str, Tensor]) -> Mapping[str, Tensor]:
    """By name, what the acting controls are shown of a frame that came with these planes."""
    pictures = ControlPictures(PICTURES, {}, torch.float64)
    (drawn,) = pictures.draw(planes[PICTURE][None], [settings], [planes])
    return {name.removeprefix(CONTROL): each for name, each in drawn.items()}
