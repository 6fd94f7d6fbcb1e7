"""A stream through engines in a row, each with a piece of the steps: frames and settings as on the wire."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import torch
from rearview.contract.frame import Frame
from rearview.engine.engine import Engine
from rearview.engine.player import Player
from rearview.engine.scheduler import CostTable, Scheduler
from rearview.transport.wire import decode_frame, decode_settings, encode_frame, encode_settings

from support.frames import content, entering
from support.memories import composed
from support.tiny_bank import Stream, denoise_span, tiny_bank, tiny_model

SESSION_ID = "ab" * 16


def in_pieces(stream: Stream, pieces: Sequence[Sequence[int]]) -> list[torch.Tensor | None]:
    """The stream's latents by ordinal, one frame after another; each piece has its own bank."""
    engines = [_engine(steps) for steps in pieces]
    for engine in engines:
        engine.open(stream.spec)
    outputs = []
    for ordinal, latent in enumerate(stream.latents):
        frame = entering(stream.spec.session_id, ordinal, latent, stream.version(ordinal))
        for engine in engines:
            if ordinal in stream.changes:
                settings = decode_settings(encode_settings(stream.changes[ordinal]))
                engine.update(stream.spec.session_id, stream.version(ordinal), settings)
            frame = _passed(engine, frame)
        outputs.append(content(frame))
    return outputs


def _engine(steps: Sequence[int]) -> Engine:
    memory = composed(tiny_bank(1, steps=steps))
    return Engine(denoise_span(steps), tiny_model(), memory, Scheduler(CostTable(), 16), clock=lambda: 0.0)


def _passed(engine: Engine, frame: Frame[torch.Tensor]) -> Frame[torch.Tensor]:
    engine.admit(frame, 0.0)
    (emission,) = Player(engine, clock=lambda: 0.0).left()
    return emission if emission.is_lost else _sent(emission)


def _sent(frame: Frame[torch.Tensor]) -> Frame[torch.Tensor]:
    """The frame once it was on a link."""
    planes = {name: plane.numpy() for name, plane in (frame.planes or {}).items()}
    message = replace(frame, session_id=SESSION_ID, planes=planes)
    received = decode_frame(b"".join(bytes(part) for part in encode_frame(message, 0.0)), 0.0)
    assert received.planes is not None
    tensors = {name: torch.from_numpy(plane.copy()) for name, plane in received.planes.items()}
    return replace(received, session_id=frame.session_id, planes=tensors)
