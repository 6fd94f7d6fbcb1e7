"""A loaded `UNet2DConditionModel` with motion modules between its layers, and its own forward over them.

The UNet's modules stay the objects that they are (adapters exchange their weights in place, attention
processors stay installed); the motion modules are added to its blocks, under the names that diffusers'
`UNetMotionModel` gives them, so its state dict is that model's. What surprises: there is no clip here.
Samples are a batch of frames of any sessions, and only `attend`, which the caller brings along, knows which
of them see each other. Without it the motion modules are skipped.
Live2Diff: methods 3.1 and 3.4.
Shape legend: S samples (frames), C channels, HW latent size, T tokens of a prompt.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import torch
from diffusers.models.unets.unet_2d_blocks import (
    CrossAttnDownBlock2D,
    CrossAttnUpBlock2D,
    DownBlock2D,
    UNetMidBlock2D,
    UNetMidBlock2DCrossAttn,
    UpBlock2D,
)
from torch import Tensor, nn
from torch.nn import functional as F

from rearview.engine.networks.motion_module import MotionModule, TemporalAttend, TemporalAttention

__all__ = ["DepthBranch", "StreamingUNet", "motion_state"]

TAKEN_OVER = (
    *("conv_in", "time_proj", "time_embedding", "down_blocks", "mid_block", "up_blocks"),
    *("conv_norm_out", "conv_act", "conv_out"),
)
BLOCKS = (
    *(CrossAttnDownBlock2D, DownBlock2D, UNetMidBlock2DCrossAttn, UNetMidBlock2D),
    *(CrossAttnUpBlock2D, UpBlock2D),
)
DEPTH_WIDTHS = (16, 16, 32, 32, 96, 96, 256)
"""Of the depth branch's layers, in channels."""


class DepthBranch(nn.Module):
    """What a frame's depth latent adds to `conv_in`'s output (methods 3.4). Starts at adding nothing."""

    def __init__(self, in_channels: int, out_channels: int) -> None:
        super().__init__()
        self.conv_in = _conv(in_channels, DEPTH_WIDTHS[0])
        self.blocks = nn.ModuleList(map(_conv, DEPTH_WIDTHS[:-1], DEPTH_WIDTHS[1:]))
        self.conv_out = _conv(DEPTH_WIDTHS[-1], out_channels)
        nn.init.zeros_(self.conv_out.weight)
        assert self.conv_out.bias is not None
        nn.init.zeros_(self.conv_out.bias)

    def forward(self, depth_SCHW: Tensor) -> Tensor:
        x = F.silu(self.conv_in(depth_SCHW))
        for block in self.blocks:
            x = F.silu(block(x))
        output: Tensor = self.conv_out(x)
        return output


class StreamingUNet(nn.Module):
    """A UNet whose frames may remember earlier ones."""

    conv_in: nn.Conv2d
    conv_out: nn.Conv2d
    conv_norm_out: nn.Module | None
    conv_act: nn.Module
    time_proj: nn.Module
    time_embedding: nn.Module
    down_blocks: nn.ModuleList
    mid_block: nn.Module | None
    up_blocks: nn.ModuleList

    def __init__(
        self, unet: Any, *, heads: int = 8, norm_groups: int = 32, max_frames: int = 24, depth: bool = False
    ) -> None:
        """Adds motion modules to the blocks of `unet`, which has none yet, in its type and on its device.

        `max_frames`: positions of the modules' tables. `depth`: with a branch for depth latents.
        Raises ValueError for a UNet that has more than Stable Diffusion 1.5's parts, or sizes that misfit.
        """
        super().__init__()
        _check_plain(unet)
        self.config = unet.config
        for name in TAKEN_OVER:
            setattr(self, name, getattr(unet, name))
        blocks: list[Any] = [*self.down_blocks, *self.up_blocks]
        added, layers = [], 0
        for block in blocks:
            modules = nn.ModuleList()
            for resnet in block.resnets:
                channels = resnet.out_channels
                modules.append(
                    MotionModule(
                        channels,
                        heads=heads,
                        norm_groups=norm_groups,
                        max_frames=max_frames,
                        first_layer=layers,
                    )
                )
                layers += 2
            added.append(modules.to(unet.device, unet.dtype))
        for block, modules in zip(blocks, added, strict=True):
            block.motion_modules = modules
        self.max_frames = max_frames
        self.flow_conv_in: DepthBranch | None = None
        if depth:
            branch = DepthBranch(self.config.in_channels, self.conv_in.out_channels)
            self.flow_conv_in = branch.to(unet.device, unet.dtype)
        self.train(unet.training)

    def forward(
        self,
        sample: Tensor,
        timestep: Tensor | float,
        encoder_hidden_states: Tensor,
        return_dict: bool = False,
        cross_attention_kwargs: Mapping[str, Any] | None = None,
        timestep_cond: Tensor | None = None,
        depth: Tensor | None = None,
        attend: TemporalAttend | None = None,
        down_block_additional_residuals: Sequence[Tensor] = (),
        mid_block_additional_residual: Tensor | None = None,
    ) -> tuple[Tensor]:
        """Predictions (S, C, H, W) for noisy latents (S, C, H, W) at a timestep each, (S,) or one for all.

        `encoder_hidden_states` (S, T, C). `cross_attention_kwargs["memory"]`: an `AttentionMemory` for
        spatial attention. `timestep_cond` (S, C): embedded scales of guidance, for a UNet that is conditioned
        on them. `attend`: attention over time, pixel by pixel. `depth`: depth latents
        (S, C, H, W), needed iff there is a depth branch and `attend`. `*_residual(s)`: what ControlNets add
        to the skips and to the middle. As diffusers' UNet returns it with `return_dict=False`, which is all
        that there is.
        """
        assert not return_dict, "this UNet returns a tuple"
        steps_S = torch.as_tensor(timestep, device=sample.device).expand(sample.shape[0])
        time = self.time_embedding(self.time_proj(steps_S).to(sample.dtype), timestep_cond)
        shared = _Shared(time, encoder_hidden_states, cross_attention_kwargs, attend)
        x = self.conv_in(sample)
        if self.flow_conv_in is not None and attend is not None:
            assert depth is not None, "this UNet was trained with depth and got none"
            x = x + self.flow_conv_in(depth)
        x = self._through_blocks(x, shared, down_block_additional_residuals, mid_block_additional_residual)
        if self.conv_norm_out is not None:
            x = self.conv_act(self.conv_norm_out(x))
        return (self.conv_out(x),)

    def temporal_layers(self) -> Iterator[tuple[str, int, TemporalAttention]]:
        """(name, level, layer) of every temporal attention by layer number; a level halves the latent."""
        level = 0
        for name, block, change in self._motion_blocks():
            for module_name, module in block.motion_modules.named_modules():
                if isinstance(module, TemporalAttention):
                    yield f"{name}.motion_modules.{module_name}", level, module
            level += change

    @property
    def has_depth(self) -> bool:
        """Whether forwards with `attend` need `depth`."""
        return self.flow_conv_in is not None

    @property
    def size_multiple(self) -> int:
        """Latent cells of which height and width must be a multiple: nothing may be rounded on the way."""
        return int(2 ** sum(block.downsamplers is not None for block in self.down_blocks))

    @property
    def dtype(self) -> torch.dtype:
        return self.conv_in.weight.dtype

    @property
    def device(self) -> torch.device:
        return self.conv_in.weight.device

    def _motion_blocks(self) -> Iterator[tuple[str, Any, int]]:
        """(name, block, change of level after it)."""
        for index, block in enumerate(self.down_blocks):
            yield f"down_blocks.{index}", block, int(block.downsamplers is not None)
        for index, block in enumerate(self.up_blocks):
            yield f"up_blocks.{index}", block, -int(block.upsamplers is not None)

    def _through_blocks(
        self, x: Tensor, shared: _Shared, down_residuals: Sequence[Tensor], mid_residual: Tensor | None
    ) -> Tensor:
        skips = [x]
        block: Any
        for block in self.down_blocks:
            for layers in _layers(block):
                x = shared.layer(x, *layers)
                skips.append(x)
            for downsampler in block.downsamplers or ():
                x = downsampler(x)
                skips.append(x)
        if down_residuals:
            skips = [skip + residual for skip, residual in zip(skips, down_residuals, strict=True)]
        x = shared.middle(x, self.mid_block)
        if mid_residual is not None:
            x = x + mid_residual
        for block in self.up_blocks:
            for layers in _layers(block):
                x = shared.layer(torch.cat([x, skips.pop()], dim=1), *layers)
            for upsampler in block.upsamplers or ():
                x = upsampler(x, skips[-1].shape[2:])
        return x


class _Shared:
    """What all layers of one forward are given."""

    def __init__(
        self,
        time_SC: Tensor,
        prompt_STC: Tensor,
        spatial: Mapping[str, Any] | None,
        attend: TemporalAttend | None,
    ) -> None:
        self._time, self._prompt, self._spatial, self._attend = time_SC, prompt_STC, spatial, attend

    def layer(self, x: Tensor, resnet: Any, attention: Any | None, motion: MotionModule) -> Tensor:
        """Resnet, spatial transformer, motion module."""
        x = resnet(x, self._time)
        if attention is not None:
            x = attention(x, self._prompt, cross_attention_kwargs=self._spatial, return_dict=False)[0]
        return x if self._attend is None else motion(x, self._attend)

    def middle(self, x: Tensor, block: Any | None) -> Tensor:
        """The middle block is stock: it has no motion module."""
        if block is None:
            return x
        arguments: dict[str, Any] = {}
        if getattr(block, "has_cross_attention", False):
            arguments = {"encoder_hidden_states": self._prompt, "cross_attention_kwargs": self._spatial}
        output: Tensor = block(x, self._time, **arguments)
        return output


def motion_state(unet: StreamingUNet) -> dict[str, Tensor]:
    """The motion modules' weights, named as in diffusers' `MotionAdapter` (its tables of positions are
    recomputed, and not among them).
    """
    return {name: value for name, value in unet.state_dict().items() if ".motion_modules." in name}


def _conv(in_channels: int, out_channels: int) -> nn.Conv2d:
    return nn.Conv2d(in_channels, out_channels, 3, padding=1)


def _layers(block: Any) -> Iterator[tuple[Any, Any | None, MotionModule]]:
    attentions: Sequence[Any] = getattr(block, "attentions", None) or [None] * len(block.resnets)
    return zip(block.resnets, attentions, block.motion_modules, strict=True)


def _check_plain(unet: Any) -> None:
    """Raises ValueError for what this forward would leave out."""
    if extra := sorted({name for name, _ in unet.named_children()} - {*TAKEN_OVER}):
        raise ValueError(f"a UNet with {', '.join(extra)} cannot have motion modules")
    blocks = [*unet.down_blocks, *unet.up_blocks, *([unet.mid_block] if unet.mid_block is not None else [])]
    for block in blocks:
        if type(block) not in BLOCKS:
            raise ValueError(f"a UNet with {type(block).__name__} cannot have motion modules")
        if hasattr(block, "motion_modules"):
            raise ValueError("this UNet has motion modules already")
    if unet.config.center_input_sample:
        raise ValueError("a UNet that centres its input is not supported")
