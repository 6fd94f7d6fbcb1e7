"""Others' code on the same networks, measured in the same run: diffusers' own image-to-image loop.

`LCMScheduler` and TAESD, from host bytes to host bytes, eager or by torch.compile, a picture or several at a
time. StreamDiffusion's own code is in `stream_diffusion.py`.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from rearview.engine.networks.model import DiffusionModel
from torch import Tensor

from loadtest.engine_cells import Bench, wait
from loadtest.engine_loop import percentile

__all__ = [
    "COMPILERS",
    "DIFFUSERS",
    "STREAM_DIFFUSION",
    "Peer",
    "Stock",
    "diffusers_loop",
    "measure_peer",
    "stock_networks",
    "stock_of",
    "to_bytes",
]

DIFFUSERS, STREAM_DIFFUSION = "diffusers", "StreamDiffusion"
TOKENS = 77
WARM_UP = 3
MIN_CONTRAST = 1.0
"""Levels of 255 by which a peer's picture must vary."""
COMPILERS = ("eager", "compiled", "compiled graphs")
"""As torch.compile does by itself, and with its own CUDA graphs (`reduce-overhead`)."""


@dataclass(frozen=True, slots=True)
class Peer:
    """One way to run one of them."""

    who: str
    """`DIFFUSERS` or `STREAM_DIFFUSION`."""
    steps: int
    batch: int
    """Pictures in a call; of StreamDiffusion, streams in turns."""
    accelerator: str
    """One of `COMPILERS`."""

    @property
    def calls(self) -> int:
        """From a picture's coming in to its coming out."""
        return self.steps if self.who == STREAM_DIFFUSION else 1

    @property
    def name(self) -> str:
        """In words."""
        of = f"batch {self.batch}" if self.who == DIFFUSERS else f"{self.batch} streams in turns"
        if self.batch == 1:
            of = "1 picture at a time"
        return f"{self.who}, {self.steps} step{'s' if self.steps > 1 else ''}, {of}, {self.accelerator}"


@dataclass(frozen=True, slots=True)
class Stock:
    """The networks of a model of ours as diffusers makes them, with the same weights in place."""

    unet: Any
    vae: Any


def stock_networks(model: DiffusionModel) -> Stock:
    """Of a model without motion modules: no attention processor of ours is in them."""
    from diffusers import AutoencoderTiny, UNet2DConditionModel

    (denoiser,), vae = model.denoisers.values(), model.vae
    made = []
    for kind, network in ((UNet2DConditionModel, denoiser.unet), (AutoencoderTiny, vae)):
        with torch.device("meta"):
            stock = kind.from_config(network.config)
        state = {name: value for name, value in network.state_dict().items() if name in stock.state_dict()}
        stock.load_state_dict(state, assign=True)
        made.append(stock.eval().requires_grad_(False))
    stock_vae: Any = made[1]
    # From which diffusers' pipelines read how much smaller latents are.
    stock_vae.register_to_config(block_out_channels=stock_vae.config.encoder_block_out_channels)
    return Stock(*made)


def stock_of(bench: Bench) -> Stock:
    """`stock_networks` of the model that is measured, which is eager from now on."""
    networks = bench.networks()
    networks.accelerators.use("eager")
    return stock_networks(networks.model)


def compiled(stock: Stock, accelerator: str) -> Stock:
    """The same, of which torch compiles what takes time. Changes the autoencoder that it is given."""
    if accelerator == "eager":
        return stock
    mode = "reduce-overhead" if accelerator == "compiled graphs" else None
    torch._dynamo.config.recompile_limit = max(64, torch._dynamo.config.recompile_limit)
    for part in ("encoder", "decoder"):
        setattr(stock.vae, part, torch.compile(getattr(stock.vae, part), dynamic=False, mode=mode))
    return Stock(torch.compile(stock.unet, dynamic=False, mode=mode), stock.vae)


def diffusers_loop(bench: Bench, peer: Peer) -> Callable[[list[bytearray]], list[bytes]]:
    """Pictures of a batch, H x W x 3 bytes each, through as many steps at strength 0.5."""
    from diffusers import LCMScheduler, StableDiffusionImg2ImgPipeline

    device, dtype, pixels = bench.device, bench.dtype, bench.size.pixels
    stock = stock_of(bench)
    pipeline = StableDiffusionImg2ImgPipeline(
        stock.vae,
        None,
        None,
        stock.unet,
        LCMScheduler(steps_offset=1),
        None,
        None,
        requires_safety_checker=False,
    )
    pipeline.set_progress_bar_config(disable=True)
    made = compiled(stock, peer.accelerator)
    # Put in afterwards: diffusers looks at the classes of what it is given.
    pipeline.unet = made.unet
    width = stock.unet.config.cross_attention_dim
    embeds = torch.randn(1, TOKENS, width, generator=torch.Generator().manual_seed(0))
    embeds_BTC = embeds.expand(peer.batch, -1, -1).to(device, dtype)
    options = {"num_inference_steps": 2 * peer.steps, "strength": 0.5, "guidance_scale": 1.0}

    @torch.inference_mode()
    def run(pictures: list[bytearray]) -> list[bytes]:
        levels = torch.stack([torch.frombuffer(each, dtype=torch.uint8) for each in pictures])
        image_BCHW = levels.view(-1, pixels, pixels, 3).to(device).permute(0, 3, 1, 2).to(dtype) / 255
        generator = torch.Generator(device).manual_seed(0)
        images = pipeline(
            prompt_embeds=embeds_BTC, image=image_BCHW, output_type="pt", generator=generator, **options
        ).images
        return to_bytes(images)

    return run


def to_bytes(images_BCHW: Tensor) -> list[bytes]:
    """Of pictures in [0, 1]: H x W x 3 levels of 255 each, on the host."""
    levels = (images_BCHW.permute(0, 2, 3, 1) * 255).round().clamp_(0, 255).to(torch.uint8).cpu()
    return [picture.numpy().tobytes() for picture in levels]


def measure_peer(
    bench: Bench,
    peer: Peer,
    run: Callable[[list[bytearray]], list[bytes]],
    pictures: Callable[[int], bytearray],
    rounds: int,
) -> dict[str, Any]:
    """FPS and latency of so many calls. `pictures`: by number. Raises ValueError for flat pictures."""
    begin_s = time.perf_counter()
    batches = [[pictures(peer.batch * n + i) for i in range(peer.batch)] for n in range(max(rounds, WARM_UP))]
    for n in range(WARM_UP + peer.steps):  # A stream batch gives its first picture after so many.
        left = run(batches[n % len(batches)])
    warm_up_s = time.perf_counter() - begin_s
    if bench.device.type == "cuda":
        torch.cuda.reset_peak_memory_stats()
    taken_s = []
    for n in range(rounds):
        wait(bench.device)
        begin_s = time.perf_counter()
        left = run(batches[n])
        taken_s.append(time.perf_counter() - begin_s)
    assert len(left) == peer.batch, f"{len(left)} of {peer.batch} pictures came back"
    contrast = _contrast(left[-1])
    if contrast < MIN_CONTRAST:
        raise ValueError(f"the pictures of {peer.who} vary by {contrast:.2g} levels only")
    fps = peer.batch * rounds / sum(taken_s)
    peak = torch.cuda.max_memory_allocated() / 2**20 if bench.device.type == "cuda" else None
    frame_flops = bench.networks().work.of_frame(peer.steps, banked=False)
    return {
        "frames": peer.batch * rounds,
        "fps": fps,
        "latency_p50_ms": 1e3 * peer.calls * percentile(taken_s, 50),
        "latency_p95_ms": 1e3 * peer.calls * percentile(taken_s, 95),
        "memory_mib": peak,
        "share_of_bound": fps * frame_flops / bench.peak_flops,
        "warm_up_s": warm_up_s,
        "contrast_levels": contrast,
    }


def _contrast(picture: bytes) -> float:
    return float(torch.frombuffer(bytearray(picture), dtype=torch.uint8).float().std())
