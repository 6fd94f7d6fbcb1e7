"""The ingress and the engine agree which frames wait for each other, whatever comes and is lost.

Both follow the plan in `contract/warmup.py`: the engine step by step, by the frames that are there, and the
ingress from outside, by what has come back.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace

import pytest
from hypothesis import Phase, given, settings
from hypothesis import strategies as st
from rearview.contract.memories import CacheSettings, Rewarm
from rearview.contract.settings import Settings
from rearview.contract.warmup import LaneWarmUp, LaneWarmUpState
from rearview.engine.engine import Engine
from support.frames import planes_of
from support.toy import Faults, ToyModel, player, toy_payload
from support.toy_cache import SINK
from support.toy_clips import BASE, CUTS, cached_engine, cached_spec, spans_of

pytestmark = pytest.mark.unit

FRAMES = 14
CHANGE = st.builds(
    replace,
    st.just(BASE),
    prompt=st.sampled_from(["p", "q"]),
    scene=st.integers(0, 1),
    steps=st.sampled_from([2, 3]),
    adapters=st.sampled_from(["", "ink"]),
)


@dataclass
class Edge:
    """As much of an ingress as gives ordinals and sends fillers."""

    warm_up: LaneWarmUp
    engines: Sequence[Engine]
    next_ordinal: int = 0
    pictures: int = 0
    in_lane: set[int] = field(default_factory=set)
    under: Settings = BASE

    def send(self, under: Settings) -> None:
        """A frame from the client."""
        if self.warm_up.is_reset_by(under):
            self.complete()
        for _ in range(self.warm_up.enter(self.next_ordinal, under) + 1):
            self._into_lane(under)

    def complete(self) -> None:
        """Send what the window still waits for, if a frame waits with it."""
        if any(map(self.warm_up.holds, self.in_lane)):
            for _ in range(self.warm_up.missing(self.next_ordinal)):
                self._into_lane(self.under)

    def run(self) -> None:
        """Until the lane does nothing more."""
        for frame in player(*self.engines).left():
            self.in_lane.discard(frame.ordinal)
            self.warm_up.came_back(frame.ordinal, lost=frame.is_lost)

    def _into_lane(self, under: Settings) -> None:
        line, ordinal, self.under = player(*self.engines), self.next_ordinal, under
        line.update("a", ordinal + 1, under)
        line.admit("a", ordinal, planes_of(toy_payload("a", ordinal)), ordinal + 1)
        self.in_lane.add(ordinal)
        self.next_ordinal += 1


@settings(deadline=None, max_examples=150, phases=[Phase.explicit, Phase.reuse, Phase.generate])
@given(
    changes=st.dictionaries(st.integers(0, FRAMES - 1), CHANGE, max_size=4),
    lost=st.sets(
        st.tuples(st.integers(0, 2 * FRAMES), st.sampled_from(["encode", "denoise-0", "denoise-1"]))
    ),
    cache=st.builds(CacheSettings, st.sampled_from(Rewarm), st.sampled_from(Rewarm)),
    cut=st.sampled_from(list(CUTS)),
    pauses=st.sets(st.integers(0, FRAMES - 1)) | st.just(set(range(FRAMES))),
    instant=st.booleans(),
)
def test_what_the_ingress_says_is_missing_is_what_the_engine_waits_for(
    changes: Mapping[int, Settings],
    lost: set[tuple[int, str]],
    cache: CacheSettings,
    cut: str,
    pauses: set[int],
    instant: bool,
) -> None:
    fails = Faults(
        lambda row: not row.shadow and any((each.ordinal, row.operator.name) in lost for each in row.frames)
    )
    engines = [cached_engine(span, ToyModel(fails=fails)) for span in spans_of(cut)]
    spec = cached_spec(cache=cache)
    for engine in engines:
        engine.open(spec)
    edge = Edge(LaneWarmUp.of(SINK, spec.cache, LaneWarmUpState(spec.settings), instant=instant), engines)
    under = BASE
    for n in range(FRAMES):
        under = changes.get(n, under)
        edge.send(under)
        if n in pauses:
            edge.run()
            missing = edge.warm_up.missing(edge.next_ordinal)
            # Frames wait in the lane only for a window that the ingress knows. All are in it, unless a
            # reset was sent before a loss was known.
            held = set(filter(edge.warm_up.holds, edge.in_lane))
            assert not edge.in_lane or (missing > 0 and held)
            assert held == edge.in_lane or (lost and len(pauses) < FRAMES)
            assert lost or not (instant and edge.in_lane), "an instant start waits"
    edge.run()
    while edge.in_lane:
        before = edge.next_ordinal
        edge.complete()
        assert before < edge.next_ordinal <= before + SINK, "the ingress knows of nothing to send"
        edge.run()
    assert edge.in_lane == set()
