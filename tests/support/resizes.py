"""Sessions whose frames change their size, over a whole service in one process: a tiny model, in float64."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from rearview.config import ServiceConfig, load_config
from rearview.contract.size import Size
from rearview.v1 import translation_service_pb2 as pb

from support.raw_stream import OPERATORS, RawStream
from support.tiny import write_tiny_checkpoint
from support.tiny_motion_files import original_motion, write_motion_file

__all__ = [
    "FRAMES",
    "HALVES",
    "LARGE",
    "METHODS",
    "SIZES",
    "TALL",
    "WIDE",
    "config",
    "image",
    "play",
    "size_at",
    "start",
    "write_model",
]

LARGE, WIDE, TALL = Size(128, 128), Size(128, 64), Size(64, 128)
FRAMES = 15
SIZES = {4: WIDE, 8: LARGE, 12: TALL}
"""Size of frames from some on; before that they are large. A bank is written with every second frame."""
HALVES = (OPERATORS[:2], OPERATORS[2:])
METHODS: Mapping[str, Mapping[str, Any]] = {
    "per-frame": {},
    "bank": {
        "method": pb.METHOD_STREAMV2V,
        "feature_bank": pb.FeatureBank(policy=pb.FeatureBank.POLICY_QUEUE, interval=2, max_frames=2),
    },
    "cache": {"method": pb.METHOD_LIVE2DIFF},
}


def write_model(folder: Path) -> dict[str, Any]:
    """Section `model` of a config."""
    torch.set_num_threads(1)
    return {
        "checkpoint": str(write_tiny_checkpoint(folder / "checkpoint")),
        "motion": str(write_motion_file(folder / "motion.safetensors", original_motion())),
        "dtype": "float64",
        "width": LARGE.width,
        "height": LARGE.height,
    }


def config(
    model: Mapping[str, Any],
    spans: Sequence[Sequence[str]] = (OPERATORS,),
    replicas: int = 1,
    **sections: Any,
) -> ServiceConfig:
    """One row a forward, so that equal means bit-equal."""
    each = {"slots": 2, "replicas": replicas, "max_batch": 1}
    content: dict[str, Any] = {
        "model": dict(model),
        "topology": "fused" if len(spans) == 1 else "pipeline",
        "spans": [{"name": f"span-{at}", "operators": list(ops), **each} for at, ops in enumerate(spans)],
        "cache": {"sink_frames": 2, "ring_frames": 2},
        "bank": {"policy": "queue", "max_frames": 2, "fusion_threshold": -1.0},
        "recovery": {"checkpoint_interval_s": 0.02},
        "ingress": {"port": 0},
        "link": {"secret": "s"},
    }
    return load_config({**content, **sections})


def size_at(number: int, sizes: Mapping[int, Size] = SIZES) -> Size:
    return next((sizes[at] for at in sorted(sizes, reverse=True) if at <= number), LARGE)


def image(number: int, size: Size | None = None) -> bytes:
    """A raw frame; None: of its size in `SIZES`."""
    width, height = size or size_at(number)
    draw = np.random.default_rng(number)
    return draw.integers(0, 256, (height, width, 3), dtype=np.uint8).tobytes()


async def start(
    address: str, method: str, size: Size = LARGE, token: str | None = None, **fields: Any
) -> RawStream:
    stream = RawStream(address, token)
    asked = {"drop_policy": pb.DROP_POLICY_LOSSLESS, "answer_format": pb.IMAGE_FORMAT_RGB, **METHODS[method]}
    await stream.start(width=size.width, height=size.height, **{**asked, **fields})
    return stream


async def play(
    stream: RawStream, frames: range, *, answers: int, sizes: Mapping[int, Size] = SIZES
) -> list[pb.TranslatedFrame]:
    """Send frames and the controls before them; read on until there are so many answers in all."""
    for number in frames:
        while number >= stream.frame_credit:
            await stream.read_answers(1)
        if number in sizes:
            await stream.control(number, width=sizes[number].width, height=sizes[number].height)
        await stream.frame(number, image(number, size_at(number, sizes)), pb.IMAGE_FORMAT_RGB)
    await stream.read_answers(answers - len(stream.answers))
    assert stream.drops == []
    return [answer.frame for answer in stream.answers]
