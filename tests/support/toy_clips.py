"""Clips with a temporal cache through toy engines, and on the plain path: equal means bit-equal."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace

import torch
from rearview.contract.chain import Operator, OperatorKind, Span, chain
from rearview.contract.memories import CacheSettings, Rewarm
from rearview.contract.session import SessionSpec
from rearview.contract.settings import Settings
from rearview.engine.engine import Engine
from rearview.engine.player import Clip
from rearview.engine.reference.clip import Sample, denoise_clip
from torch import Tensor

from support.frames import content, planes_of
from support.tiny import whole_chain
from support.toy import TOY_STEPS, ToyModel, player, toy_engine, toy_output, toy_payload, toy_spec
from support.toy_cache import SINK, Seen, ToyCache, number_of_sample

ENCODE, DECODE = Operator(OperatorKind.ENCODE), Operator(OperatorKind.DECODE)
CUTS = {
    "one span": [range(5)],
    "encode apart": [range(1), range(1, 5)],
    "after step 0": [range(2), range(2, 5)],
    "after step 1": [range(3), range(3, 5)],
    "a span each": [range(i, i + 1) for i in range(5)],
}
"""Cuts of the chain of three steps."""
BASE = toy_spec("a", steps=TOY_STEPS).settings
STYLE, CUT = replace(BASE, prompt="other"), replace(BASE, scene=1)
FEWER = replace(BASE, steps=2)
INK = replace(BASE, adapters="ink")
CHANGES: dict[str, Mapping[int, Settings]] = {
    "none": {},
    "prompt": {6: STYLE},
    "scene": {7: CUT},
    "prompt in the warm-up": {2: STYLE},
    "weights in the warm-up": {2: INK},
    "weights": {7: INK},
    "fewer steps": {7: FEWER},
    "fewer steps in the warm-up": {1: FEWER},
    "more steps": {0: FEWER, 7: BASE},
    "a newer one during a shadow": {6: STYLE, 8: replace(STYLE, prompt="third")},
    "one after a shadow": {6: STYLE, 6 + SINK: replace(STYLE, prompt="third")},
    "a reset during a shadow": {6: STYLE, 8: replace(STYLE, steps=2)},
    "prompt and scene": {6: STYLE, 11: replace(STYLE, scene=4)},
    "prompt and scene at once": {6: replace(STYLE, scene=1)},
    "prompt, scene and steps at once": {6: replace(STYLE, scene=1, steps=2)},
}
POLICIES = [
    CacheSettings(),
    CacheSettings(Rewarm.RESET, Rewarm.SHADOW),
    CacheSettings(Rewarm.KEEP, Rewarm.RESET),
]


def cached_spec(
    name: str = "a", steps: int = TOY_STEPS, cache: CacheSettings | None = None, settings: Settings = BASE
) -> SessionSpec:
    return replace(toy_spec(name, steps), cache=cache or CacheSettings(), settings=settings)


def per_frame(count: int, changes: Mapping[int, Settings], first: Settings = BASE) -> list[Settings]:
    settings = []
    for n in range(count):
        first = changes.get(n, first)
        settings.append(first)
    return settings


def plain_pictures(spec: SessionSpec, settings: Sequence[Settings]) -> list[Tensor | None]:
    """The clip on the plain path."""
    assert spec.cache is not None
    pasts: dict[int, Seen] = {}

    def run(step: int, samples: Sequence[Sample[Tensor]], together: bool) -> list[Tensor]:
        numbers = [number_of_sample(*sample) for sample in samples]
        pasts[step] = Seen(tuple(numbers)) if together else pasts[step].after(numbers[0])
        link = Operator(OperatorKind.DENOISE, step)
        return [toy_output(link, payload + pasts[step].number, under, n) for n, under, payload in samples]

    encoded = [
        toy_output(ENCODE, toy_payload(spec.session_id, n), under, n) for n, under in enumerate(settings)
    ]
    clean = denoise_clip(run, encoded, settings, spec.cache, SINK)
    return [
        None if latent is None else toy_output(DECODE, latent, under, n)
        for n, (latent, under) in enumerate(zip(clean, settings, strict=True))
    ]


def spans_of(cut: str) -> list[Span]:
    whole = chain(TOY_STEPS)
    return [Span(f"span-{i}", tuple(whole[at] for at in piece)) for i, piece in enumerate(CUTS[cut])]


def pictures(
    engines: Sequence[Engine], specs: Sequence[SessionSpec], settings: Sequence[Settings], burst: int = 1
) -> dict[str, list[Tensor | None]]:
    """Clips through engines joined by links: `burst` frames a session enter between steps."""
    clips = [
        Clip(
            spec,
            [planes_of(toy_payload(spec.session_id, n)) for n in range(len(settings))],
            dict(enumerate(settings)),
        )
        for spec in specs
    ]
    found = player(*engines).play(*clips, burst=burst)
    return {name: [content(frame) for frame in frames] for name, frames in found.items()}


def assert_same(found: Sequence[Tensor | None], expected: Sequence[Tensor | None]) -> None:
    assert len(found) == len(expected)
    for n, (picture, wanted) in enumerate(zip(found, expected, strict=True)):
        assert (picture is None) == (wanted is None), f"frame {n}: only one of the two is there"
        assert picture is None or wanted is None or torch.equal(picture, wanted), f"frame {n} differs"


def cached_engine(span: Span | None = None, model: ToyModel | None = None, **options: object) -> Engine:
    span = span or whole_chain(TOY_STEPS)
    options.setdefault("memory", ToyCache(steps=span.steps))
    return toy_engine(model or ToyModel(), span, **options)  # type: ignore[arg-type]
