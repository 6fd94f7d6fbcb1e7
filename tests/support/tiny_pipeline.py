"""A stream through engines in a row, each with a piece of the steps: frames and settings as on the wire."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from rearview.engine.engine import Engine
from rearview.engine.rows import FrameInput
from rearview.engine.scheduler import CostTable, Scheduler
from rearview.transport.wire import FrameMessage, decode_frame, decode_settings, encode_frame, encode_settings

from support.tiny_bank import Stream, denoise_span, tiny_bank, tiny_model

SESSION_ID = "ab" * 16


def in_pieces(stream: Stream, pieces: Sequence[Sequence[int]]) -> list[torch.Tensor | None]:
    """The stream's latents by ordinal, one frame after another; each piece has its own bank."""
    engines = [_engine(steps) for steps in pieces]
    for engine in engines:
        engine.open(stream.spec)
    outputs = []
    for ordinal, latent in enumerate(stream.latents):
        payload: torch.Tensor | None = latent
        for engine in engines:
            if ordinal in stream.changes:
                settings = decode_settings(encode_settings(stream.changes[ordinal]))
                engine.update(stream.spec.session_id, stream.version(ordinal), settings)
            payload = _passed(engine, stream, ordinal, payload)
        outputs.append(payload)
    return outputs


def _engine(steps: Sequence[int]) -> Engine:
    memory = tiny_bank(1, steps=steps)
    return Engine(denoise_span(steps), tiny_model(), memory, Scheduler(CostTable(), 16), clock=lambda: 0.0)


def _passed(
    engine: Engine, stream: Stream, ordinal: int, payload: torch.Tensor | None
) -> torch.Tensor | None:
    engine.admit(FrameInput(stream.spec.session_id, ordinal, payload, stream.version(ordinal)), 0.0)
    emissions = []
    while engine.has_work:
        emissions += engine.step(0.0).emissions
    (emission,) = emissions
    return emission.payload if emission.payload is None else _sent(emission.payload)


def _sent(payload: torch.Tensor) -> torch.Tensor:
    message = FrameMessage(SESSION_ID, 1, 0, 0, 1.0, payload.numpy())
    received = decode_frame(b"".join(bytes(part) for part in encode_frame(message)))
    assert received.payload is not None
    return torch.from_numpy(received.payload.copy())
