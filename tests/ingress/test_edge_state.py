"""A session that is restored in mid-stream goes on as one that never was."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from rearview.config import LimitsConfig
from rearview.contract.frame import Frame
from rearview.contract.memories import CacheSettings, Rewarm
from rearview.contract.settings import SettingsChange, WeightedPrompt
from rearview.contract.similarity import SimilaritySettings
from rearview.contract.stream import DropPolicy
from rearview.ingress.options import Terms
from rearview.ingress.scene import SceneDetector
from rearview.ingress.similarity import SimilarityFilter, thumbnail
from rearview.ingress.state import EdgeState
from support.edge import EdgeCore, picture, terms

pytestmark = pytest.mark.unit

FILTER = SimilaritySettings(threshold=0.9, max_skip_frames=3)
TERMS: dict[str, Terms] = {
    "plain": terms(),
    "filtered": terms(similarity=FILTER),
    "live": terms(DropPolicy.LATEST, similarity=FILTER),
    "deadline": terms(DropPolicy.DEADLINE, budget_s=0.25),
    "warm-up": terms(cache=CacheSettings(Rewarm.RESET, Rewarm.RESET), similarity=FILTER),
    "shadow": terms(cache=CacheSettings(Rewarm.SHADOW, Rewarm.KEEP), similarity=FILTER),
    "instant": terms(cache=CacheSettings(Rewarm.RESET, Rewarm.RESET, instant_start=True)),
    "live warm-up": terms(DropPolicy.LATEST, cache=CacheSettings(Rewarm.RESET, Rewarm.RESET)),
}
CHANGES = (
    SettingsChange(prompt="b", blend_frames=3),
    SettingsChange(prompt="a", blend_frames=0),
    SettingsChange(prompts=(WeightedPrompt("a", 1.0), WeightedPrompt("b", 2.0)), blend_frames=4),
    SettingsChange(seed=5),
    SettingsChange(steps=1),
    SettingsChange(jpeg_quality=40),
)

Step = tuple[str, int]
STEPS = st.lists(
    st.one_of(
        st.tuples(st.just("frame"), st.integers(0, 5)),
        st.tuples(st.just("frame"), st.integers(0, 5)),
        st.tuples(st.just("back"), st.integers(1, 4)),
        st.tuples(st.just("lost"), st.just(1)),
        st.tuples(st.just("control"), st.integers(0, len(CHANGES) - 1)),
        st.tuples(st.just("finish"), st.just(0)),
        st.tuples(st.just("bad"), st.just(0)),
    ),
    min_size=4,
    max_size=30,
)


class Played:
    """A script, played into a session."""

    def __init__(self, agreed: Terms, *, moves: bool) -> None:
        self.core = EdgeCore(agreed, LimitsConfig(max_in_flight=4, max_waiting=4))
        self._moves = moves
        self._index = 0
        self._lane: list[Frame[Any]] = []
        self._taken = 0
        self.log: list[object] = []

    def play(self, steps: Sequence[Step], restored: frozenset[int]) -> list[object]:
        for number, (kind, value) in enumerate(steps):
            if number in restored:
                self._restore()
            self.core.now += 1 / 16
            getattr(self, f"_{kind}")(value)
            self.log.append((self.core.credit, self.core.intake.warm_up_missing, self.core.intake.starves))
        while self._lane_frames():
            self._back(1)
        return self.log

    @property
    def sent(self) -> list[tuple[object, ...]]:
        """Every frame that went into a lane, its picture apart."""
        return [
            (f.place, f.ordinal, f.frame_index, f.settings_version, f.deadline_s)
            for f in self.core.sender.frames
        ]

    def _restore(self) -> None:
        if self.core.intake._pacer.waiting():
            return  # A frame that waits is in flight, and not in the state.
        if not self._moves:
            self.core.restore()
        elif not self.core.feed.in_lane and not self.core.book.owes and not self._lane_frames():
            self.log.append(self.core.outcomes)
            self.core.book.sent(self.core.book.released)
            self.core.book.acknowledge(self.core.book.released)
            self.core.move()

    def _lane_frames(self) -> list[Frame[Any]]:
        self._lane += self.core.sender.frames[self._taken :]
        self._taken = len(self.core.sender.frames)
        return self._lane

    def _frame(self, scene: int) -> None:
        if self.core.book.received < self.core.credit:
            self._index += 1
            self.core.offer(self._index, picture(scene // 2, self._index if scene % 2 else 0))

    def _bad(self, _: int) -> None:
        if self.core.book.received < self.core.credit:
            self.core.offer(self._index, picture(0))  # Its index does not increase.

    def _back(self, count: int) -> None:
        for frame in self._lane_frames()[:count]:
            self._lane.remove(frame)
            self.core.comes_back(replace(frame, epoch=self.core.feed.lane.epoch))

    def _lost(self, _: int) -> None:
        for frame in self._lane_frames()[:1]:
            self._lane.remove(frame)
            self.core.comes_back(frame, lost=True)

    def _control(self, which: int) -> None:
        self.core.intake.apply(CHANGES[which].apply(self.core.intake.settings))

    def _finish(self, _: int) -> None:
        self.core.intake.finish()
        self.core.run()


@pytest.mark.parametrize("name", TERMS)
@settings(max_examples=60, deadline=None)
@given(steps=STEPS, cuts=st.frozensets(st.integers(0, 30), min_size=1, max_size=4))
def test_a_session_restored_in_mid_stream_is_the_same(
    name: str, steps: list[Step], cuts: frozenset[int]
) -> None:
    """Ordinals, drops, scenes, versions, blends, credit and deadlines; frames stay in the lane meanwhile."""
    whole, parts = Played(TERMS[name], moves=False), Played(TERMS[name], moves=False)
    assert parts.play(steps, cuts) == whole.play(steps, frozenset())
    assert parts.sent == whole.sent
    assert parts.core.sender.settings == whole.core.sender.settings
    assert parts.core.outcomes == whole.core.outcomes
    assert parts.core.book.translated == whole.core.book.translated


LONG: Sequence[Step] = [
    *[("frame", 0), ("frame", 0), ("frame", 1), ("frame", 1), ("back", 4), ("control", 0), ("frame", 0)],
    *[("back", 4), ("frame", 0), ("back", 4), ("bad", 0), ("frame", 0), ("finish", 0), ("back", 4)],
    *[("frame", 2), ("frame", 2), ("frame", 2), ("back", 4), ("control", 2), ("frame", 2), ("back", 4)],
    *[("control", 5), ("frame", 2), ("finish", 0), ("back", 4), ("frame", 3), ("finish", 0), ("back", 4)],
]


@pytest.mark.parametrize("name", TERMS)
def test_a_session_moved_while_quiet_is_the_same(name: str) -> None:
    """Every move is to another lane, with a book of its own: only the durable part goes along."""
    whole, moved = Played(TERMS[name], moves=False), Played(TERMS[name], moves=True)
    whole.play(LONG, frozenset())
    log = moved.play(LONG, frozenset(range(len(LONG))))
    assert moved.core.feed.lane.epoch > 3, "nothing was moved"
    assert moved.sent == whole.sent
    outcomes = [one for entry in log if isinstance(entry, list) for one in entry] + moved.core.outcomes
    assert outcomes == whole.core.outcomes
    # Each lane is told of what is in force, by the number that all lanes know it by.
    known = {version: under for _, version, under in whole.core.sender.settings}
    assert {version: under for _, version, under in moved.core.sender.settings} == known
    assert moved.core.book.dropped == whole.core.book.dropped


def test_the_state_holds_plain_values_only() -> None:
    played = Played(TERMS["warm-up"], moves=False)
    played.play(LONG, frozenset())
    text = played.core.intake.state(1, 2).to_json()
    content = json.loads(text)
    assert {"next_ordinal", "warm_up", "similarity", "scenes", "in_force", "pacing"} <= set(content)
    assert EdgeState.from_json(text) == played.core.intake.state(1, 2)


@pytest.mark.parametrize(
    "broken",
    [
        b"",
        b"{}",
        b"[1]",
        b'{"settings": 3}',
        b"\x80\x04N.",  # a pickle
    ],
)
def test_a_broken_state_is_refused(broken: bytes) -> None:
    with pytest.raises(ValueError):
        EdgeState.from_json(broken)


@pytest.mark.parametrize("shape", [[8, 8, 4], [-8, -8, 3], [0, 8, 3], [1 << 40, 1, 1]])
def test_a_thumbnail_of_another_size_than_it_says_is_refused(shape: list[int]) -> None:
    played = Played(TERMS["filtered"], moves=False)
    played.play([("frame", 0)], frozenset())
    content = json.loads(played.core.intake.state(0, 0).to_json())
    content["similarity"]["reference"]["shape"] = shape
    with pytest.raises(ValueError):
        EdgeState.from_json(json.dumps(content).encode())


def test_filter_and_detector_keep_their_thumbnails_bit_for_bit() -> None:
    similarity, scenes = SimilarityFilter(FILTER), SceneDetector()
    seen = thumbnail(picture(3, 1))
    similarity.is_unchanged(seen, 0, 0, (1, 0, None))
    scenes.see(seen)
    restored = SimilarityFilter(FILTER, similarity.state)
    assert restored._reference is not None
    assert np.array_equal(restored._reference, seen)
    assert restored.state == similarity.state
    assert SceneDetector(scenes.state).state == scenes.state
