"""The two ways to translate the same clip: through the service, and the engine called in this process.

Run in a fresh process per arm (`python -m loadtest.arms in-process|service …`), so that no arm inherits
another's threads, caches or Ray. Both get the same JPEGs, settings, threads and batch limits.
"""

from __future__ import annotations

import json
import os
import time
from collections import deque
from collections.abc import Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rearview.config import ServiceConfig
from rearview.contract.card import ModelCard
from rearview.contract.stream import DropPolicy, ImageFormat
from rearview.errors import ConfigError

from loadtest.generator import generate
from loadtest.machine import cpu_seconds, process_tree
from loadtest.payloads import JpegFrames, clip_frames, clip_jpegs
from loadtest.plan import ClosedLoop, LoadPlan
from loadtest.service import fail, fused_config, pipeline_config, running, with_method

if TYPE_CHECKING:
    from rearview.engine.engine import Engine
    from torch import Tensor

__all__ = ["Clip", "EngineLoop", "load_clip", "run_in_process", "run_service"]

JPEG_QUALITY = 85
CLIP_FRAMES = 96
SERVICE_IN_FLIGHT = 64
"""More than any credit window: the service's own window is what limits."""


@dataclass(frozen=True)
class Clip:
    """What is translated, and how."""

    jpegs: Sequence[bytes]
    width: int
    height: int
    prompt: str
    strength: float
    steps: int


def load_clip(path: Path, config: ServiceConfig) -> Clip:
    """A clip at the config's resolution with the checkpoint's own defaults.

    Raises ValueError, ConfigError or OSError.
    """
    card = ModelCard.read(config.model.checkpoint)
    width, height = config.model.width, config.model.height
    frames = clip_frames(path, width=width, height=height, limit=CLIP_FRAMES)
    prompt = next(iter(card.styles.values()), "a painting")
    steps = min(card.steps, config.model.max_steps)
    return Clip(clip_jpegs(frames, JPEG_QUALITY), width, height, prompt, card.strength, steps)


def run_service(config: ServiceConfig, clip: Clip, frames: int, warmup: int) -> dict[str, Any]:
    """Frames as fast as credit allows, one stream. FPS, CPU and what the service says of its time."""
    with running(config) as service:
        plan = LoadPlan(
            service.address,
            ClosedLoop(warmup + frames, in_flight=SERVICE_IN_FLIGHT),
            policy=DropPolicy.LOSSLESS,
            warmup_frames=warmup,
            width=clip.width,
            height=clip.height,
            prompt=clip.prompt,
            strength=clip.strength,
            steps=clip.steps,
            jpeg_quality=JPEG_QUALITY,
            drain_timeout_s=120.0,
        )
        result = generate(plan, JpegFrames(clip.jpegs), watch_pids=[os.getpid()])
        return {
            "fps": result.fps_per_stream[0],
            "cpu_ms_per_frame": result.cpu_ms_per_frame,
            "ready_s": service.ready_s,
            "problems": result.problems,
            "ms": result.summary()["ms"],
        }


def run_in_process(config: ServiceConfig, clip: Clip, frames: int, warmup: int) -> dict[str, Any]:
    """The engine of the config's one span in a plain loop: JPEG in, JPEG out, the ingress's bounds."""
    from rearview.replica.build import build_engine

    started_s = time.monotonic()
    engine = build_engine(config, config.spans[0])
    ready_s = time.monotonic() - started_s
    with ThreadPoolExecutor(config.ingress.codec_threads) as pool:
        loop = EngineLoop(engine, pool, clip, config)
        loop.translate(warmup)
        before_s, cpu_before_s = time.monotonic(), cpu_seconds(process_tree(os.getpid()))
        loop.translate(frames)
        seconds = time.monotonic() - before_s
    cpu_s = cpu_seconds([os.getpid()]) - cpu_before_s
    return {
        "fps": frames / seconds,
        "cpu_ms_per_frame": 1e3 * cpu_s / frames,
        "ready_s": ready_s,
        "problems": [],
        "ms": {},
    }


class EngineLoop:
    """Keeps the engine full: JPEGs are decoded ahead and encoded behind it in the pool."""

    def __init__(self, engine: Engine, pool: ThreadPoolExecutor, clip: Clip, config: ServiceConfig) -> None:
        from rearview.contract.session import SessionSpec
        from rearview.contract.settings import Settings
        from rearview.engine.player import Player

        settings = Settings(prompt=clip.prompt, strength=clip.strength, steps=clip.steps)
        self._player, self._pool, self._clip = Player(engine), pool, clip
        self._max_in_flight = config.limits.max_in_flight
        self._spec = SessionSpec("bench", clip.width, clip.height, config.model.max_steps, settings)
        self._ordinal = 0
        self._player.open(self._spec)

    def translate(self, frames: int) -> list[bytes]:
        """Translate the next `frames` frames to JPEG, in order."""
        from rearview.contract.frame import PICTURE
        from rearview.engine.player import planes_of

        decoded: deque[Future[Tensor]] = deque()
        encoded: list[Future[bytes]] = []
        first = self._ordinal
        submitted = in_flight = 0

        def feed() -> None:
            nonlocal submitted, in_flight
            while submitted < frames and len(decoded) < self._max_in_flight:
                decoded.append(self._pool.submit(self._decode, first + submitted))
                submitted += 1
            while decoded and in_flight < self._max_in_flight and (decoded[0].done() or not in_flight):
                planes = {PICTURE: decoded.popleft().result()}
                self._player.admit(self._spec.session_id, self._ordinal, planes)
                self._ordinal += 1
                in_flight += 1

        for frame in self._player.left(feed):
            in_flight -= 1
            encoded.append(self._pool.submit(self._encode, planes_of(frame)[PICTURE]))
        return [future.result() for future in encoded]

    def _decode(self, index: int) -> Tensor:
        import torch
        from rearview.ingress.codec import decode_image

        jpeg = self._clip.jpegs[index % len(self._clip.jpegs)]
        return torch.from_numpy(decode_image(jpeg, ImageFormat.JPEG, self._clip.width, self._clip.height))

    def _encode(self, image: Tensor) -> bytes:
        from rearview.ingress.codec import encode_image

        return encode_image(image.numpy(), ImageFormat.JPEG, JPEG_QUALITY)


def main(
    arm: Annotated[str, typer.Argument(help="in-process or service.")],
    out: Annotated[Path, typer.Option(help="Where to write the JSON.")],
    cut: Annotated[str, typer.Option(help="Spans of a pipeline; empty: fused.")] = "",
    threads: Annotated[int, typer.Option(min=1, help="torch threads per replica.")] = 1,
    checkpoint: str = "pocket",
    max_steps: Annotated[int, typer.Option(min=1, max=4)] = 2,
    frames: Annotated[int, typer.Option(min=1)] = 120,
    warmup: Annotated[int, typer.Option(min=0)] = 24,
    clip: Annotated[Path | None, typer.Option(help="Video; else the bundled clip.")] = None,
    method: Annotated[str, typer.Option(help="streamv2v, live2diff; empty: every frame by itself.")] = "",
) -> None:
    """Run one arm once. Part of `loadtest.throughput`."""
    try:
        if clip is None:
            from rearview.samples import sample_clip_path

            clip = sample_clip_path()
        if cut:
            config = pipeline_config(checkpoint, cut, threads=threads, max_steps=max_steps)
        else:
            config = fused_config(checkpoint, threads=threads, max_steps=max_steps)
        config = with_method(config, method)
        material = load_clip(clip, config)
    except (ConfigError, ImportError, ValueError, OSError) as error:
        fail(str(error))
    run = {"in-process": run_in_process, "service": run_service}.get(arm)
    if run is None or (arm == "in-process" and (cut or method)):
        text = f"there is no arm {arm!r}{' with a cut or a method' if cut or method else ''}"
        fail(f"{text}: use service, or in-process without --cut and --method")
    out.write_text(json.dumps(run(config, material, frames, warmup)), encoding="utf-8")


if __name__ == "__main__":
    typer.run(main)
