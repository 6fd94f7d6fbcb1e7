"""StreamDiffusion's own code on the same networks: its `StreamDiffusion` class from a folder that is given.

The folder is a copy of github.com/cumulo-autumn/StreamDiffusion (Apache-2.0), or its `src`; nothing of it is
kept here. Its stream batch runs with guidance off, so that it does the work that ours does: a call takes one
picture in, moves as many as there are steps by one each, and returns the oldest. Several streams are several
objects over the same networks, in turns: its batches are of one stream.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor

from loadtest.engine_cells import Bench
from loadtest.peers import TOKENS, Peer, compiled, stock_of, to_bytes

__all__ = ["load_class", "stream_diffusion"]

GRID = 50
"""Steps of its schedule, of which a stream visits a few."""


def load_class(folder: Path) -> Any:
    """Its class. Raises ValueError if the folder has none."""
    places = [place for place in (folder / "src", folder) if (place / "streamdiffusion").is_dir()]
    if not places:
        raise ValueError(f"{folder} has no package streamdiffusion")
    sys.path.insert(0, str(places[0]))
    try:
        from streamdiffusion.pipeline import StreamDiffusion
    finally:
        sys.path.remove(str(places[0]))
    return StreamDiffusion


def stream_diffusion(bench: Bench, peer: Peer, folder: Path) -> Callable[[list[bytearray]], list[bytes]]:
    """A picture for each stream, H x W x 3 bytes, and one back of each; of the first calls nothing is meant.
    Raises ValueError as `load_class` does.
    """
    device, dtype, pixels = bench.device, bench.dtype, bench.size.pixels
    made_by = load_class(folder)
    stock = stock_of(bench)
    width = stock.unet.config.cross_attention_dim
    pipe = _Pipe(compiled(stock, peer.accelerator), width, device, dtype)
    # The second half of the grid: strength 0.5.
    visited = [GRID // 2 + GRID // 2 * step // peer.steps for step in range(peer.steps)]
    streams = []
    for seed in range(peer.batch):
        stream = made_by(pipe, visited, torch_dtype=dtype, width=pixels, height=pixels, cfg_type="none")
        stream.prepare("", num_inference_steps=GRID, generator=torch.Generator(), seed=seed)
        _fit(stream, stock.vae.config.latent_channels)
        streams.append(stream)
    call = _called if device.type == "cuda" else _called_without_events

    @torch.inference_mode()
    def run(pictures: list[bytearray]) -> list[bytes]:
        left = []
        for stream, picture in zip(streams, pictures, strict=True):
            levels = torch.frombuffer(picture, dtype=torch.uint8).view(1, pixels, pixels, 3)
            image_1CHW = levels.to(device).permute(0, 3, 1, 2).to(dtype) / 255
            left += to_bytes(call(stream, image_1CHW) / 2 + 0.5)
        return left

    return run


def _fit(stream: Any, channels: int) -> None:
    """It takes four latent channels for granted, which the bundled model has not."""
    if stream.init_noise.shape[1] != channels:
        shape = (stream.init_noise.shape[0], channels, *stream.init_noise.shape[2:])
        stream.init_noise = torch.randn(shape, generator=stream.generator).to(stream.init_noise)
        stream.stock_noise = torch.zeros_like(stream.init_noise)
        if stream.x_t_latent_buffer is not None:
            stream.x_t_latent_buffer = torch.zeros_like(stream.init_noise[1:])


def _called(stream: Any, image_1CHW: Tensor) -> Tensor:
    output: Tensor = stream(image_1CHW)
    return output


def _called_without_events(stream: Any, image_1CHW: Tensor) -> Tensor:
    """What its `__call__` does, but for the CUDA events by which that takes its own time."""
    pixels_1CHW = stream.image_processor.preprocess(image_1CHW, stream.height, stream.width)
    x_1CHW = stream.encode_image(pixels_1CHW.to(device=stream.device, dtype=stream.dtype))
    output: Tensor = stream.decode_image(stream.predict_x0_batch(x_1CHW))
    return output


class _Pipe(SimpleNamespace):
    """As much of a pipeline of diffusers as the class uses."""

    vae_scale_factor = 8
    text_encoder = None

    def __init__(self, stock: Any, width: int, device: torch.device, dtype: torch.dtype) -> None:
        from diffusers import LCMScheduler

        super().__init__(unet=stock.unet, vae=stock.vae, device=device, scheduler=LCMScheduler())
        embeds = torch.randn(1, TOKENS, width, generator=torch.Generator().manual_seed(0))
        self._embeds = embeds.to(device, dtype)

    def encode_prompt(self, **_: Any) -> tuple[Tensor, None]:
        """Embeddings of no prompt in particular; there are no negative ones."""
        return self._embeds, None
