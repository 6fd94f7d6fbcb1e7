"""Training of the motion modules: the denoiser, text encoder and autoencoder are frozen.

Clips have as many frames as the product's window, under the mask of Live2Diff (methods 3.5): the first
`SINK` frames see each other, every later one what was before it and itself. Unlike there, time often passes
after the first frames, or they show another scene: in a long stream they are old. Losses are those of the
denoiser; what flickers costs in every clip.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from diffusers import MotionAdapter
from rearview.engine.networks.attention.temporal import ClipAttention
from rearview.engine.networks.unet import StreamingUNet
from torch import Tensor, nn
from torch.nn import functional as F

from rearview_lab.data.clips import Clips, make_clips, unsteadiness
from rearview_lab.data.dataset import Dataset
from rearview_lab.data.prompts import sample_prompt
from rearview_lab.data.styles import STYLES
from rearview_lab.training.budget import (
    Average,
    Budget,
    Journal,
    load_if_present,
    relative_rate,
    save_atomically,
)
from rearview_lab.training.denoiser import (
    PIXEL_WEIGHT,
    STEADY_LATENT_WEIGHT,
    ClipNoise,
    RollOut,
    encode_clips,
    predictions,
    style_weights,
)
from rearview_lab.training.export import Pocket
from rearview_lab.training.losses import contrast_loss, picture_loss
from rearview_lab.training.model import LATENT_STD, noise_levels
from rearview_lab.training.muon import Muon
from rearview_lab.training.precision import mixed_precision
from rearview_lab.training.sampling import encode_prompts
from rearview_lab.training.threads import ThreadChoice

SINK, FRAMES = 8, 16
NUM_CLIPS = 2  # of a step, times `batch`
WINDOW = 64  # pixels: attention over time sees one pixel of the latent, so small windows do
PEAK_RATE = 3e-3
AVERAGE_DECAY = 0.99
HEADS, NORM_GROUPS, POSITIONS = 4, 16, 32
QUERY_GAIN = 1.5
STEADY_PIXEL_WEIGHT, CONTRAST_WEIGHT = 26.0, 7.0  # blur must not pass for steadiness
OUTPUT_GAIN = 0.85
"""Of exported modules: a little weaker than trained, they keep the gradient of per-frame translation."""
_SHARE_FRESH = 0.5


def new_motion(unet: Any, *, seed: int) -> StreamingUNet:
    """Fresh motion modules on a frozen UNet; they add nothing yet, and attend to what looks alike."""
    torch.manual_seed(seed)
    streaming = StreamingUNet(unet, heads=HEADS, norm_groups=NORM_GROUPS, max_frames=POSITIONS)
    streaming.requires_grad_(False)
    motion_of(streaming).requires_grad_(True)
    with torch.no_grad():
        for _, _, layer in streaming.temporal_layers():
            layer.to_q.weight.mul_(QUERY_GAIN)
            layer.to_k.weight.copy_(layer.to_q.weight)
    return streaming


def train_motion(
    data: Dataset,
    pocket: Pocket,
    path: Path,
    *,
    minutes: float,
    device: torch.device,
    seed: int,
    batch: int = 1,
    start: dict[str, Tensor] | None = None,
    on_save: Callable[[dict[str, Tensor], int], None] = lambda weights, step: None,
) -> dict[str, Tensor]:
    """Train for the minutes given, resuming from ``path``; return what is exported, by the weights' names.

    `on_save` gets the same. `start`: weights to begin with, as `read_motion` gives them. Takes over
    `pocket.unet`.
    """
    for part in (pocket.vae, pocket.text_encoder):
        part.to(device).eval().requires_grad_(False)
    streaming = new_motion(pocket.unet, seed=seed).to(device).eval()
    modules = motion_of(streaming)
    optimiser = Muon([modules])
    saved = load_if_present(path, device)
    step, spent_s = 0, 0.0
    if saved is None and start is not None:
        load_motion(modules, start)
    if saved is not None:
        modules.load_state_dict(saved["live"])
        optimiser.load_state_dict(saved["optimiser"])
        step, spent_s = saved["step"], saved["spent_s"]
    average = Average(modules, AVERAGE_DECAY, saved)
    averaged: Any = average.module
    budget = Budget(minutes, spent_s=spent_s)
    finished_before = budget.over
    rng = np.random.default_rng([seed, 3, step])
    levels = noise_levels(device)
    journal = Journal("motion")

    def save() -> None:
        state = {"live": modules.state_dict(), "average": averaged.state_dict(), "step": step}
        save_atomically(state | {"optimiser": optimiser.state_dict(), "spent_s": budget.spent_s}, path)
        on_save(weakened(motion_weights(averaged)), step)

    threads = ThreadChoice(torch.get_num_threads())
    while not budget.over:
        threads.tick()
        clips = _clips(data, rng, NUM_CLIPS * batch, device)
        loss, parts = _loss(streaming, pocket, clips, levels, rng)
        loss.backward()
        optimiser.step(PEAK_RATE, relative=relative_rate(step, budget.fraction))
        average.update(modules, step)
        step += 1
        journal.add(step, budget.fraction, parts)
        if budget.save_due():
            save()
    if not finished_before:
        save()
    return weakened(motion_weights(averaged))


def _clips(data: Dataset, rng: np.random.Generator, num_clips: int, device: torch.device) -> Clips:
    """As long as the product's window."""
    return make_clips(
        data,
        rng,
        num_clips=num_clips,
        length=FRAMES,
        device=device,
        style_weights=style_weights(),
        sink=SINK,
        window=WINDOW,
    )


def motion_of(streaming: StreamingUNet) -> nn.ModuleDict:
    """The motion modules alone, under names without dots."""
    blocks: dict[str, Any] = {"down_blocks": streaming.down_blocks, "up_blocks": streaming.up_blocks}
    return nn.ModuleDict(
        {
            f"{name}/{index}/motion_modules": block.motion_modules
            for name, found in blocks.items()
            for index, block in enumerate(found)
        }
    )


def motion_weights(modules: nn.ModuleDict) -> dict[str, Tensor]:
    """Their weights by the names of diffusers."""
    return {name.replace("/", "."): value for name, value in modules.state_dict().items()}


def _loss(
    streaming: StreamingUNet,
    pocket: Pocket,
    clips: Clips,
    levels: tuple[Tensor, Tensor],
    rng: np.random.Generator,
) -> tuple[Tensor, dict[str, float]]:
    num_clips, device = len(clips.styles), clips.natural.device
    natural, styled = encode_clips(pocket.vae, clips)
    prompts = [sample_prompt(rng, STYLES[style]) for style in clips.styles]
    with torch.no_grad():
        context = encode_prompts(pocket.tokenizer, pocket.text_encoder, prompts)
    fresh = torch.from_numpy(rng.random(num_clips) < _SHARE_FRESH).to(device)
    roll_out = RollOut(
        streaming,
        context.repeat_interleave(FRAMES, dim=0),
        levels,
        arguments={"attend": ClipAttention(FRAMES, SINK).attend},
        noise=ClipNoise(fresh, FRAMES),
    )
    first, last = predictions(roll_out, natural, styled, rng, FRAMES)
    losses = {
        name: F.smooth_l1_loss(guess / LATENT_STD, styled / LATENT_STD, beta=0.2)
        for name, guess in (("first", first), ("last", last))
    }
    wavering = unsteadiness((last - styled) / LATENT_STD, clips.motion)
    losses["steady latent"] = STEADY_LATENT_WEIGHT * wavering
    with mixed_precision(device):
        latent = last.contiguous(memory_format=torch.channels_last) / LATENT_STD
        output = pocket.vae.decode(latent).sample
    output, target = output.float(), clips.styled.contiguous(memory_format=torch.channels_last)
    losses["pixel"] = PIXEL_WEIGHT * picture_loss(output, target)
    losses["contrast"] = PIXEL_WEIGHT * CONTRAST_WEIGHT * contrast_loss(output, target)
    losses["steady"] = STEADY_PIXEL_WEIGHT * unsteadiness(output - target, clips.motion)
    return torch.stack(list(losses.values())).sum(), {k: float(v.detach()) for k, v in losses.items()}


def load_motion(modules: nn.ModuleDict, weights: dict[str, Tensor]) -> None:
    """The inverse of `motion_weights`."""
    modules.load_state_dict({_module_name(name): value for name, value in weights.items()})


def _module_name(name: str) -> str:
    """Without the dots of the path to the modules."""
    path, rest = name.split(".motion_modules.")
    return f"{path.replace('.', '/')}/motion_modules.{rest}"


def weakened(weights: dict[str, Tensor], gain: float = OUTPUT_GAIN) -> dict[str, Tensor]:
    """The weights of modules that add ``gain`` times as much to their input."""
    last = (".proj_out.weight", ".proj_out.bias")
    return {name: value * gain if name.endswith(last) else value for name, value in weights.items()}


def read_motion(folder: Path) -> dict[str, Tensor]:
    """Weights that `write_motion` has written, as strong as they were trained."""
    adapter = MotionAdapter.from_pretrained(folder)
    kept = {name: value for name, value in adapter.state_dict().items() if ".pos_embed." not in name}
    return weakened(kept, 1 / OUTPUT_GAIN)


def write_motion(weights: dict[str, Tensor], unet_config: Any, folder: Path) -> None:
    """Write a folder of diffusers' MotionAdapter in fp16."""
    adapter = MotionAdapter(
        block_out_channels=tuple(unet_config["block_out_channels"]),
        motion_layers_per_block=unet_config["layers_per_block"],
        motion_num_attention_heads=HEADS,
        motion_norm_num_groups=NORM_GROUPS,
        motion_max_seq_length=POSITIONS,
        use_motion_mid_block=False,
    )
    missing, unknown = adapter.load_state_dict(weights, strict=False)
    assert not unknown, f"{len(unknown)} names are not those of a MotionAdapter: {unknown[:2]}"
    assert all(".pos_embed." in name for name in missing), f"missing: {missing[:2]}"
    adapter.half().save_pretrained(folder, safe_serialization=True)
