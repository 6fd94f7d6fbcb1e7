"""What a service's networks are: the section `model` of a configuration."""

from __future__ import annotations

import re
from typing import Literal

from pydantic import BaseModel, ConfigDict, Field, field_validator, model_validator

__all__ = ["AdapterConfig", "ControlConfig", "ModelConfig", "ReferenceConfig"]


class AdapterConfig(BaseModel):
    """One LoRA of an adapter set."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    path: str = Field(min_length=1)
    """A LoRA: .safetensors file, folder, or on the hub `owner/name[/file]`; kohya's, diffusers' or peft's."""
    scale: float = Field(default=1.0, ge=-4.0, le=4.0)
    """How much of it."""


class ControlConfig(BaseModel):
    """One ControlNet, and what it is shown of a frame."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    path: str = Field(min_length=1)
    """Folder or hub id of a ControlNetModel in diffusers' format, for the checkpoint's base model."""
    picture: Literal["canny", "soft_edges", "depth", "tile", "sent"]
    """What it was trained to be shown: `canny`, `soft_edges`, `depth`, or `tile`, the frame itself; `sent`:
    what clients send with their frames, since the service cannot draw it (poses)."""
    depth: str = ""
    """Folder or hub id of a DPTForDepthEstimation (`Intel/dpt-hybrid-midas`): for one that is shown
    depth, and only for that."""

    @model_validator(mode="after")
    def _check_depth(self) -> ControlConfig:
        if (self.picture == "depth") != bool(self.depth):
            raise ValueError("depth is needed with the picture depth, and only with that")
        return self


class ReferenceConfig(BaseModel):
    """An adapter for reference images (IP-Adapter), and the image encoder that it was trained with."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    path: str = Field(min_length=1)
    """A file in the original layout, .safetensors or .bin, here or on the hub
    (`h94/IP-Adapter/models/ip-adapter_sd15.safetensors`): the plain one, `light` or `plus`."""
    image_encoder: str = Field(min_length=1)
    """Folder of a CLIPVisionModelWithProjection, here or on the hub
    (`h94/IP-Adapter/models/image_encoder`)."""


class ModelConfig(BaseModel):
    """The networks of the service, and where their weights come from."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    name: str = "pocket"
    """Name by which clients ask for the model."""
    checkpoint: str = "pocket"
    """`pocket` (bundled), `null` (moves opaque bytes, no image work), `chain` (the same, with a watermark for
    reliability tests), a diffusers checkpoint folder, a single .safetensors or .ckpt file, or `owner/name` on
    the Hugging Face hub."""
    single_file_config: str = "stable-diffusion-v1-5/stable-diffusion-v1-5"
    """For a single file: folder or hub id in diffusers format with its settings and tokenizer."""
    vae: str = ""
    """Folder, file or hub id (`madebyollin/taesd`) of a VAE instead of the checkpoint's. Empty: its own."""
    lcm_lora: str = ""
    """LoRA fused into the weights, for few steps (`latent-consistency/lcm-lora-sdv1-5`). Empty: none."""
    motion: str = ""
    """Motion modules for the temporal cache (Live2Diff): a file in AnimateDiff's v1 or v3 or in Live2Diff's
    layout, a folder of diffusers' MotionAdapter, or on the hub `owner/name[/file]`. Empty: those in the
    checkpoint's own folder `motion_adapter`, if there is one."""
    depth: str = ""
    """Folder or hub id of a DPTForDepthEstimation (`Intel/dpt-hybrid-midas`): for motion modules that were
    trained with depth, and only for those. Empty: none."""
    beta_schedule: Literal["", "linear", "scaled_linear"] = ""
    """Noise schedule instead of the checkpoint's; AnimateDiff and Live2Diff were trained with `linear`.
    Empty: the checkpoint's own."""
    clip_skip: int = Field(default=0, ge=0, le=12)
    """Last layers of the text encoder that prompts do not pass, as in diffusers: 1 takes the layer before the
    last one, which some checkpoints were trained with (user interfaces that count from 1 call that 2)."""
    adapters: dict[str, tuple[AdapterConfig, ...]] = Field(default_factory=dict)
    """Named adapter sets: a session may ask for one (`Settings.adapters`), or for several at weights of their
    own (`Settings.adapter_mix`). Sessions with different sets share forwards."""
    merged_adapters: tuple[str, ...] = ()
    """Those of the sets that are merged into weights when a replica starts: their frames cost what frames
    without adapters do. Each takes the memory of the layers that it changes, is asked for alone and at weight
    1, and sessions with different ones do not share forwards."""
    controls: dict[str, ControlConfig] = Field(default_factory=dict)
    """Named ControlNets: a session may ask for several (`Settings.controls`). Each adds about a third to what
    the denoising steps of its frames cost, and its weights to the memory."""
    reference: ReferenceConfig | None = None
    """An adapter for reference images: with it a session may have one (`Settings.reference`). Its image
    encoder is in every replica with denoising steps. Empty: none."""
    device: str = "auto"
    """`auto`: the first that there is of CUDA, MPS (Apple), XPU (Intel) and CPU. Or a torch device."""
    dtype: Literal["auto", "float32", "float64", "bfloat16", "float16"] = "auto"
    """Of the networks. `auto`: float16; on CPUs bfloat16 if they have it in hardware, else float32."""
    compiled: bool = True
    """Whether networks run from what `rearview models compile` has made for this machine, where there is any.
    Pictures differ from those of the networks as they are by rounding."""
    graphs: bool = True
    """Whether forwards are captured while a replica starts and then replayed, where the device is CUDA's.
    Pictures stay as they are."""
    max_steps: int = Field(default=2, ge=1, le=4)
    """Denoising steps that the chain has: the longest that a session may ask for."""
    width: int = Field(default=256, ge=64, le=1024, multiple_of=8)
    """Default width of a session, pixels."""
    height: int = Field(default=256, ge=64, le=1024, multiple_of=8)
    """Default height of a session, pixels."""

    @field_validator("adapters", "controls")
    @classmethod
    def _check_names(cls, named: dict[str, object]) -> dict[str, object]:
        wrong = [name for name in named if not re.fullmatch(r"[a-z0-9][a-z0-9-]{0,39}", name)]
        if wrong:
            raise ValueError(f"names have lower case letters, digits and -: not {', '.join(wrong)}")
        return named

    @model_validator(mode="after")
    def _check_merged(self) -> ModelConfig:
        if unknown := sorted({*self.merged_adapters} - {*self.adapters}):
            raise ValueError(f"merged_adapters names sets that adapters lacks: {', '.join(unknown)}")
        return self
