"""Streams of random latents through the tiny checkpoint's denoiser, with a feature bank, in float64."""

from __future__ import annotations

import random
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path

import torch
from rearview.contract.chain import Operator, OperatorKind, Span
from rearview.contract.frame import Frame
from rearview.contract.memories import BankPolicy, BankSettings
from rearview.contract.session import SessionSpec
from rearview.contract.settings import Settings
from rearview.engine.ahead import Ahead
from rearview.engine.engine import Engine, Order
from rearview.engine.memory.bank.layers import KeptOutputs
from rearview.engine.memory.bank.pool import BankShape, FeatureBank
from rearview.engine.memory.compose import Memories
from rearview.engine.networks.denoise import Denoiser
from rearview.engine.networks.model import DiffusionModel
from rearview.engine.player import Player
from rearview.engine.reference.bank import PlainBank
from rearview.engine.reference.frame import denoise_latent
from rearview.engine.rows import Row
from rearview.engine.scheduler import CostTable, Scheduler
from rearview.engine.weights.checkpoint import load_denoiser

from support.frames import content, entering, in_flight, stacked
from support.memories import composed, gather, scatter
from support.tiny import LATENT_CHANNELS, SIZE, write_tiny_checkpoint

MAX_STEPS = 3
CPU = torch.device("cpu")


@lru_cache
def tiny_denoiser(seed: int = 0) -> Denoiser:
    """The tiny checkpoint in float64, its self-attention made sharp: flat attention would hide a bank."""
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as folder:
        denoiser = load_denoiser(write_tiny_checkpoint(Path(folder), seed), CPU, torch.float64)
    for name, parameter in denoiser.unet.named_parameters():
        if ".attn1.to_q." in name or ".attn1.to_k." in name or ".attn1.to_out." in name:
            parameter.mul_(6.0)
    return denoiser


def tiny_model() -> DiffusionModel:
    return DiffusionModel(None, tiny_denoiser(), device=CPU, dtype=torch.float64)


def tiny_bank(
    num_slots: int = 4,
    *,
    steps: Sequence[int] = range(MAX_STEPS),
    size_frames: float = 1.0,
    kept_outputs: KeptOutputs = KeptOutputs.FUSED,
    dtype: torch.dtype = torch.float64,
    ahead: Ahead | None = None,
) -> FeatureBank:
    layout = tiny_denoiser().bank_layout
    assert layout is not None
    shape = BankShape(num_slots, tuple(steps), SIZE, SIZE, size_frames, kept_outputs)
    return FeatureBank(layout, shape, dtype=dtype, ahead=ahead)


def denoise_span(steps: Sequence[int] = range(MAX_STEPS)) -> Span:
    """A span that owns the UNet alone: what goes in and comes out is a latent, exact."""
    return Span("denoise", tuple(Operator(OperatorKind.DENOISE, step) for step in steps))


def tiny_engine(
    memory: FeatureBank | Memories, *, order: Order = Order.BACK_TO_BACK, max_batch: int = 16
) -> Engine:
    return Engine(
        denoise_span(),
        tiny_model(),
        composed(memory),
        Scheduler(CostTable(), max_batch),
        order=order,
        clock=lambda: 0.0,
    )


def banked(
    session_id: str, bank: BankSettings | None, *, height: int = SIZE, width: int = SIZE, **settings: object
) -> SessionSpec:
    values = Settings(**{"prompt": "a", "strength": 0.6, "steps": 2, **settings})  # type: ignore[arg-type]
    return SessionSpec(session_id, width, height, MAX_STEPS, values, bank=bank)


def video(count: int, seed: int = 0, *, height: int = SIZE, width: int = SIZE) -> list[torch.Tensor]:
    """Latents of a slowly changing scene, so that some tokens find their like in the past."""
    generator = torch.Generator().manual_seed(seed)
    shape = (LATENT_CHANNELS, height // 8, width // 8)
    draw = lambda: torch.randn(shape, generator=generator, dtype=torch.float64)  # noqa: E731
    scene = draw()
    return [scene + 0.3 * draw() for _ in range(count)]


@dataclass
class Stream:
    """A session with its frames."""

    spec: SessionSpec
    latents: list[torch.Tensor]
    changes: dict[int, Settings] = field(default_factory=dict)
    """Ordinal to the settings from it on."""
    lost: frozenset[int] = frozenset()
    """Ordinals that were dropped upstream."""

    def settings(self, ordinal: int) -> Settings:
        versions = [o for o in sorted(self.changes) if o <= ordinal]
        return self.changes[versions[-1]] if versions else self.spec.settings

    def version(self, ordinal: int) -> int:
        return sum(o <= ordinal for o in self.changes)


Outputs = dict[str, dict[int, torch.Tensor | None]]


def mixed_streams(count: int, frames: int = 6) -> list[Stream]:
    """Sessions of every kind, with and without a bank, at mixed steps, strengths and prompts."""
    kinds: list[BankSettings | None] = [
        BankSettings(interval=2, fusion_threshold=0.9),
        BankSettings(interval=3, phase=1, fusion_strength=0.5, fusion_threshold=0.5),
        None,
        BankSettings(policy=BankPolicy.QUEUE, max_frames=2, interval=1, fusion_threshold=0.8),
        BankSettings(policy=BankPolicy.QUEUE, interval=2, fusion_strength=0.0),
        BankSettings(merge_ratio=0.75, interval=1, fusion_threshold=0.7),
    ]
    return [
        Stream(
            banked(
                f"s{i}",
                kinds[i % len(kinds)],
                prompt=f"p{i % 3}",
                steps=1 + i % 3,
                seed=i,
                strength=0.9 - 0.1 * (i % 4),
            ),
            video(frames, seed=i),
        )
        for i in range(count)
    ]


def play(
    engine: Engine,
    streams: Sequence[Stream],
    seed: int = 0,
    each_step: Callable[[], None] = lambda: None,
) -> dict[str, list[torch.Tensor | None]]:
    """Feed streams in an order drawn from `seed`: they join late, pause, run ahead and leave early.

    Returns each session's latents by ordinal; None where a frame was lost.
    """
    chance = random.Random(seed)
    sent = {stream.spec.session_id: 0 for stream in streams}
    outputs: Outputs = {name: {} for name in sent}
    waiting = list(streams)
    while waiting:
        stream = chance.choice(waiting)
        name, ordinal = stream.spec.session_id, sent[stream.spec.session_id]
        if name not in engine.sessions:
            _close_finished(engine, streams, outputs)
            if engine.free_slots == 0:  # Nobody has left yet: see to it that somebody can.
                _step(engine, outputs, each_step)
                continue
            engine.open(stream.spec)
        if ordinal in stream.changes:
            engine.update(name, stream.version(ordinal), stream.changes[ordinal])
        payload = None if ordinal in stream.lost else stream.latents[ordinal]
        engine.admit(entering(name, ordinal, payload, stream.version(ordinal)), 0.0)
        sent[name] += 1
        if sent[name] == len(stream.latents):
            engine.flush(name)
            waiting.remove(stream)
        for _ in range(chance.choice((0, 0, 1, 3))):
            _step(engine, outputs, each_step)
    for frame in Player(engine, clock=lambda: 0.0, watch=lambda *_: each_step()).left():
        _take(frame, outputs)
    _close_finished(engine, streams, outputs)
    engine.check_integrity()
    return {name: [found[n] for n in sorted(found)] for name, found in outputs.items()}


def _step(engine: Engine, outputs: Outputs, each_step: Callable[[], None]) -> None:
    for frame in engine.step(0.0).emissions:
        _take(frame, outputs)
    each_step()


def _take(frame: Frame[torch.Tensor], outputs: Outputs) -> None:
    known = outputs[frame.session_id]
    assert frame.ordinal not in known, f"frame {frame.ordinal} left twice"
    known[frame.ordinal] = content(frame)


def _close_finished(engine: Engine, streams: Sequence[Stream], outputs: Outputs) -> None:
    for stream in streams:
        if len(outputs[stream.spec.session_id]) == len(stream.latents):
            engine.close(stream.spec.session_id)


def alone(stream: Stream, **shape: float) -> list[torch.Tensor | None]:
    """The stream in an engine of its own."""
    memory = tiny_bank(1, **shape)  # type: ignore[arg-type]
    return play(tiny_engine(memory), [stream])[stream.spec.session_id]


def by_reference(stream: Stream) -> list[torch.Tensor | None]:
    """The stream on the plain path."""
    denoiser = tiny_denoiser()
    assert denoiser.bank_layout is not None
    bank = None if stream.spec.bank is None else PlainBank(stream.spec.bank, denoiser.bank_layout)
    with torch.inference_mode():
        return [
            None
            if n in stream.lost
            else denoise_latent(denoiser, latent[None], stream.settings(n), n, torch.float64, bank)[0]
            for n, latent in enumerate(stream.latents)
        ]


def make_row(
    spec: SessionSpec,
    latent: torch.Tensor,
    ordinal: int = 0,
    step: int = 0,
    *,
    settings: Settings | None = None,
) -> Row:
    operator = Operator(OperatorKind.DENOISE, step)
    frame = in_flight(spec, ordinal, operator, latent, settings)
    return Row((frame,), operator, "group", float("inf"))


def forward(memory: FeatureBank, rows: Sequence[Row]) -> torch.Tensor:
    """One forward of rows; commits."""
    result = tiny_model().forward(rows, gather(memory, rows))
    scatter(memory, rows, result.updates)
    return torch.stack([stacked(planes) for planes in result.outputs])


def advance(
    memory: FeatureBank, spec: SessionSpec, latents: Sequence[torch.Tensor], first: int = 0
) -> list[torch.Tensor]:
    """A session's frames one after another, from ordinal `first`."""
    outputs = []
    for n, latent in enumerate(latents, start=first):
        for step in range(spec.settings.steps):
            latent = forward(memory, [make_row(spec, latent, n, step)])[0]
        outputs.append(latent)
    return outputs


def gap(left: Sequence[torch.Tensor | None], right: Sequence[torch.Tensor | None]) -> float:
    """Largest difference; infinite if one has a picture where the other has none."""
    assert len(left) == len(right), f"{len(left)} pictures and {len(right)}"
    if any((a is None) != (b is None) for a, b in zip(left, right, strict=True)):
        return float("inf")
    pairs = zip(left, right, strict=True)
    gaps = [(a - b).abs() for a, b in pairs if a is not None and b is not None]
    return max((float(each.max()) for each in gaps if each.numel()), default=0.0)
