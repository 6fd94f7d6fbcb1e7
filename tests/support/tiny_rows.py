"""Two denoising steps of a tiny model in float64, with a bank or a cache: engines, sessions, plain path."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace

import torch
from rearview.contract.chain import Operator, OperatorKind, Span, chain
from rearview.contract.frame import PICTURE, Frame
from rearview.contract.memories import BankSettings, CacheSettings
from rearview.contract.session import SessionSpec
from rearview.contract.settings import Guidance, Settings
from rearview.engine.engine import Engine, Order
from rearview.engine.memory.build import CacheOptions, MemoryOptions, build_memories
from rearview.engine.memory.cache.window import CacheWindow
from rearview.engine.memory.protocol import Views
from rearview.engine.networks.encode import encode
from rearview.engine.networks.model import DiffusionModel
from rearview.engine.player import Clip
from rearview.engine.reference.bank import PlainBank
from rearview.engine.reference.frame import denoise_latent
from rearview.engine.rows import Row
from rearview.engine.scheduler import CostTable, Scheduler
from torch import Tensor

from support.frames import content, in_flight
from support.tiny import SIZE, session
from support.tiny_bank import Stream
from support.tiny_control import shown_to

CPU, DTYPE = torch.device("cpu"), torch.float64
EXACT = 1e-9
STEPS = 2
SPAN = Span("latent", chain(STEPS)[:-1])
CUTS = ([[0, 1, 2]], [[0], [1, 2]], [[0, 1], [2]], [[0], [1], [2]])
"""Of encode and two steps, by place."""
BANK = BankSettings(interval=2, fusion_threshold=0.5)
WINDOW = CacheWindow(2, 3)
FULL = {"guidance": Guidance.FULL, "guidance_scale": 2.0, "negative_prompt": "zebra"}


def sharpened(model: object) -> DiffusionModel:
    """With self-attention made sharp, since flat attention would hide a bank."""
    assert isinstance(model, DiffusionModel)
    for name, parameter in model.denoisers[""].unet.named_parameters():
        if ".attn1.to_q." in name or ".attn1.to_k." in name or ".attn1.to_out." in name:
            parameter.mul_(6.0)
    return model


def engine_with(
    model: DiffusionModel,
    span: Span = SPAN,
    max_batch: int = 16,
    *,
    motion: bool = False,
    both: bool = False,
    order: Order = Order.BACK_TO_BACK,
) -> Engine:
    """With a bank, or where there is `motion` a cache, or `both`."""
    options = MemoryOptions(
        num_slots=8,
        height=SIZE,
        width=SIZE,
        dtype=DTYPE,
        bank=BANK if both or not motion else None,
        cache=CacheOptions(WINDOW) if motion else None,
    )
    memory = build_memories(span, model.layouts, options)
    return Engine(span, model, memory, Scheduler(CostTable(), max_batch), order=order, clock=lambda: 0.0)


def cut_spans(cut: Sequence[Sequence[int]]) -> list[Span]:
    """Those of one of `CUTS`."""
    return [Span(f"s{piece[0]}", tuple(SPAN.operators[at] for at in piece)) for piece in cut]


def spec_of(name: str, *, bank: bool = False, cached: bool = False, **settings: object) -> SessionSpec:
    under = Settings(**{"prompt": "a", "strength": 0.6, "steps": STEPS, **settings})  # type: ignore[arg-type]
    return replace(
        session(name, under), bank=BANK if bank else None, cache=CacheSettings() if cached else None
    )


def entering_row(model: DiffusionModel, name: str, image: Tensor, **settings: object) -> Row:
    """A frame's first step, as encoding leaves it."""
    operator, spec = Operator(OperatorKind.ENCODE), spec_of(name, **settings)  # type: ignore[arg-type]
    row = Row((in_flight(spec, 0, operator, image),), operator, "group", float("inf"))
    (planes,) = model.forward([row], Views()).outputs
    denoise = Operator(OperatorKind.DENOISE, 0)
    return Row((in_flight(spec, 0, denoise, planes),), denoise, "group", float("inf"))


def on_plain_path(model: DiffusionModel, stream: Stream) -> list[Tensor | None]:
    """The latents of a stream, frame by frame without engine or rows."""
    denoiser, found = model.denoisers[""], []
    assert denoiser.bank_layout is not None
    bank = None if stream.spec.bank is None else PlainBank(stream.spec.bank, denoiser.bank_layout)
    for n, came in enumerate(stream.latents):
        under, planes = stream.settings(n), came if isinstance(came, Mapping) else {PICTURE: came}
        with torch.inference_mode():
            z, shown = encode(model.vae, planes[PICTURE][None], DTYPE), shown_to(under, planes)
            found.append(denoise_latent(denoiser, z, under, n, DTYPE, bank, shown)[0])
    return list(found)


def settings_by_frame(clip: Clip) -> list[Settings]:
    """What each frame of it is under."""
    versions = {0: clip.spec.settings, **clip.changes}
    return [versions[max(at for at in versions if at <= n)] for n in range(len(clip.frames))]


def assert_equal(found: Sequence[Frame[Tensor]], expected: Sequence[Frame[Tensor]]) -> None:
    """To the bit, and every frame has its latent."""
    pairs = [(content(one), content(other)) for one, other in zip(found, expected, strict=True)]
    assert [a is not None and b is not None and torch.equal(a, b) for a, b in pairs] == [True] * len(pairs)
