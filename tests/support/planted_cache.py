"""A service whose sessions have a temporal cache in exact integers, over a model that does no image work."""

from __future__ import annotations

from collections.abc import Sequence

import pytest
import torch
from rearview.contract.chain import Span
from rearview.engine.memory.compose import Memories
from rearview.engine.memory.protocol import Updates, Views
from rearview.engine.networks.model import Forward, NullModel
from rearview.engine.rows import Row

from support.frames import content, planes_of
from support.toy_cache import RING, SINK, ToyCache
from support.toy_view import TOY

__all__ = ["CACHE", "SeesPast", "plant_cache"]

CACHE = {"sink_frames": SINK, "ring_frames": RING}
"""Section `cache` of a configuration that fits the planted memory."""


class SeesPast(NullModel):
    """Pictures show what of its past each frame has seen. Forwards with a byte string of `fails` raise."""

    def __init__(self, fails: Sequence[bytes] = ()) -> None:
        self._fails = tuple(fails)

    def forward(self, rows: Sequence[Row], views: Views) -> Forward:
        payloads = [content(each) for row in rows for each in row.samples()]
        for payload in payloads:
            if self._fails and payload.numpy().tobytes().startswith(self._fails):
                raise RuntimeError("planted")
        view = views.of(TOY)
        if view is None:
            return Forward([planes_of(each) for each in payloads])
        seen = zip(payloads, view.seen_S.tolist(), strict=True)
        return Forward(
            [planes_of((each.int() + past).remainder(251).to(torch.uint8)) for each, past in seen],
            Updates({TOY.name: view.update}),
        )


def plant_cache(monkeypatch: pytest.MonkeyPatch, model: SeesPast | None = None) -> list[ToyCache]:
    """Give every span that is loaded from now on a toy cache; returns these, in the order of the spans."""
    caches: list[ToyCache] = []
    places: dict[str, int] = {}

    def memories(
        config: object, span: Span, model: object, device: object, slots: int, *_: object
    ) -> Memories:
        cache = ToyCache(slots)
        if span.name not in places:
            places[span.name] = len(caches)
            caches.append(cache)
        caches[places[span.name]] = cache  # The first is what costs are measured with.
        return Memories([cache], slots)

    monkeypatch.setattr("rearview.replica.build.memories_of", memories)
    monkeypatch.setattr("rearview.replica.build.load_model", lambda *_: model or SeesPast())
    monkeypatch.setattr("rearview.ingress.admission.has_motion", lambda *_: True)
    return caches
