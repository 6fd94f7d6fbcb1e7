"""Sessions of the bundled model at its smallest, over a whole service in one process."""

from __future__ import annotations

from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager
from typing import Any

import numpy as np
from rearview.config import ServiceConfig, load_config
from rearview.v1 import translation_service_pb2 as pb

from support.raw_stream import OPERATORS, RawStream, quickly_stopped
from support.service import InProcessService, in_process_service

__all__ = [
    "FRAMES",
    "FUSED",
    "HALVES",
    "image",
    "lose",
    "never_moved",
    "play",
    "pocket",
    "pocket_config",
    "session_of",
    "start",
    "whole",
]

FUSED = (OPERATORS,)
HALVES = (OPERATORS[:2], OPERATORS[2:])
SIDE = 64
FRAMES = 10
METHODS: Mapping[str, Mapping[str, Any]] = {
    "per-frame": {},
    "bank": {"method": pb.METHOD_STREAMV2V, "feature_bank": pb.FeatureBank(interval=2)},
    "cache": {"method": pb.METHOD_LIVE2DIFF},
}


@asynccontextmanager
async def pocket(
    spans: Sequence[Sequence[str]] = FUSED, replicas: int | Sequence[int] = 2, **recovery: Any
) -> AsyncIterator[InProcessService]:
    """A service of `pocket_config`."""
    with quickly_stopped():
        async with in_process_service(pocket_config(spans, replicas, **recovery)) as service:
            yield service


def pocket_config(
    spans: Sequence[Sequence[str]] = FUSED, replicas: int | Sequence[int] = 2, **recovery: Any
) -> ServiceConfig:
    """The bundled model at its smallest. One row a forward: pictures depend on batches by rounding.

    `replicas`: of every span, or of each.
    """
    counts = [replicas] * len(spans) if isinstance(replicas, int) else replicas
    return load_config(
        {
            "model": {"checkpoint": "pocket", "width": SIDE, "height": SIDE, "dtype": "float32"},
            "topology": "fused" if len(spans) == 1 else "pipeline",
            "spans": [
                {"name": f"span-{at}", "operators": list(each), "slots": 2, "replicas": count, "max_batch": 1}
                for at, (each, count) in enumerate(zip(spans, counts, strict=True))
            ],
            "bank": {},
            "cache": {"sink_frames": 3, "ring_frames": 3},
            "ingress": {"port": 0},
            "recovery": {"checkpoint_interval_s": 0.02, **recovery},
        }
    )


def image(index: int) -> bytes:
    picture = np.random.default_rng(index).integers(0, 256, (SIDE // 8, SIDE // 8, 3), dtype=np.uint8)
    return np.repeat(np.repeat(picture, 8, axis=0), 8, axis=1).tobytes()


async def start(address: str, method: str) -> RawStream:
    stream = RawStream(address)
    raw = pb.IMAGE_FORMAT_RGB
    policy = pb.DROP_POLICY_LOSSLESS
    await stream.start("a harbour", drop_policy=policy, answer_format=raw, **METHODS[method])
    return stream


async def play(stream: RawStream, frames: range, *, answers: int) -> list[bytes]:
    for number in frames:
        while number >= stream.frame_credit:
            await stream.read_answers(1)
        await stream.frame(number, image(number), pb.IMAGE_FORMAT_RGB)
    await stream.read_answers(answers - len(stream.answers))
    return [answer.frame.image for answer in stream.answers]


_WHOLE: dict[str, list[bytes]] = {}


async def whole(service: InProcessService, method: str) -> list[bytes]:
    """The pictures of a session that stays where it is. Those of the first service that is asked stand for
    all: whatever the cut, they are the same.
    """
    if method not in _WHOLE:
        _WHOLE[method] = await _whole(service, method)
    return _WHOLE[method]


async def never_moved(method: str) -> list[bytes]:
    """The same, of a service of its own where none was asked yet."""
    if method not in _WHOLE:
        async with pocket(replicas=1) as service:
            await whole(service, method)
    return _WHOLE[method]


async def _whole(service: InProcessService, method: str) -> list[bytes]:
    stream = await start(service.address, method)
    pictures = await play(stream, range(FRAMES), answers=FRAMES)
    assert stream.moves == []
    assert stream.opened.method == METHODS[method].get("method", pb.METHOD_PER_FRAME)
    await stream.half_close()
    await stream.read_to_end()
    await stream.__aexit__()
    return pictures


def session_of(service: InProcessService, stream: RawStream) -> Any:
    return service.sessions[stream.opened.session_id].session


async def lose(service: InProcessService, replica_id: str) -> None:
    stage = next(s for s in service.stages if s.describe()["replica_id"] == replica_id)
    service.stages.remove(stage)
    await stage.stop()
