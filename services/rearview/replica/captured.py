"""CUDA graphs of a span's forwards, captured while it starts, so that frames wait for no capture or compiler.

What is captured is what most sessions run: those of each method, as they are configured. Forwards of other
sizes are filled up to the next; those under several adapter sets or a merged one, or with controls, are
captured when they come for the second time. Where there is an adapter for reference images they are captured
with one and without.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Sequence

import torch

from rearview.config import ServiceConfig
from rearview.contract.card import is_opaque
from rearview.contract.chain import Span
from rearview.contract.session import SessionSpec
from rearview.engine.acceleration.counts import Counts
from rearview.engine.acceleration.graphs import Recorder, capture
from rearview.engine.calibration import warm_up
from rearview.engine.memory.compose import Memories
from rearview.engine.networks.model import DiffusionModel
from rearview.engine.planes import Planes

__all__ = ["SIZES", "capture_span", "captures", "sizes_up_to"]

logger = logging.getLogger(__name__)

SIZES = (*range(1, 9), 12, 16, 24, 32)
"""Samples of forwards that are captured. Larger ones are as they come, when they come again."""


def captures(config: ServiceConfig, device: torch.device) -> bool:
    """Whether forwards are replayed from graphs on that device."""
    return config.model.graphs and device.type == "cuda" and not is_opaque(config.model.checkpoint)


def sizes_up_to(max_batch: int) -> Sequence[int]:
    """Those of a span whose forwards have up to so many, ascending: the largest is among them."""
    most = min(max_batch, SIZES[-1])
    return (*(size for size in SIZES if size < most), most)


def capture_span(
    span: Span,
    model: DiffusionModel,
    memory: Memories,
    examples: Sequence[tuple[SessionSpec, Sequence[Planes]]],
    max_batch: int,
    recorder: Recorder,
    on_progress: Callable[[str], None],
) -> Sequence[Counts]:
    """Let the model replay its forwards over `memory`, and have captured what sessions like the `examples`
    run, in every size up to `max_batch`. `examples`: each with what its frames carry before each operator.
    Blocks for seconds, with a compiler for minutes.
    """
    sizes, started_s = sizes_up_to(max_batch), time.monotonic()
    counts = capture(model, recorder, sizes)
    for number, (spec, payloads) in enumerate(examples, 1):
        on_progress(f"{span.name}: capturing forwards, {number} of {len(examples)} kinds of sessions")
        # The largest first: what forwards leave has one place, which need not grow then.
        warm_up(model, memory, span, spec, payloads, sizes[::-1])
    taken_s = time.monotonic() - started_s
    logger.info("%s replays its forwards from graphs, captured in %.1f s", span.name, taken_s)
    return counts
