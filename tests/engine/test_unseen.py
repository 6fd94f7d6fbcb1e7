"""Frames sent again though their clients have the pictures: only what they leave in memory counts."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

import pytest
import torch
from rearview.contract.chain import OperatorKind
from rearview.contract.frame import UNSEEN, Frame
from rearview.contract.memories import BankPolicy, BankSettings, PromptChange
from rearview.contract.settings import Settings
from rearview.engine.engine import Engine
from rearview.engine.player import Player
from rearview.engine.rows import StepResult
from support.frames import content, entering
from support.moves import frozen, through_bytes
from support.tiny_bank import banked, tiny_bank, tiny_engine, video
from support.toy import drain, toy_payload
from support.toy_clips import CUTS, cached_engine, cached_spec, spans_of

pytestmark = pytest.mark.unit

FRAMES, MOVED, SEEN = 14, 5, 11
"""It moves before frame 5, and the client has the pictures of those up to 10."""
STEPS = 2
FOURTH = BankSettings(interval=4, fusion_threshold=0.9)
BASE = banked("a", FOURTH).settings


def rows_and_frames(
    engine: Engine, first: int, seen: int, changes: Mapping[int, Settings], latents: list[torch.Tensor]
) -> tuple[int, list[Frame[torch.Tensor]]]:
    """How many rows run of the frames from `first` on, those before `seen` unseen, and what leaves."""
    rows = 0

    def watch(_: Engine, result: StepResult) -> None:
        nonlocal rows
        rows += result.batch.rows if result.batch is not None else 0

    for n in range(first, FRAMES):
        if n in changes:
            engine.update("a", _version(n, changes), changes[n])
        frame = entering("a", n, latents[n], _version(n, changes))
        engine.admit(replace(frame, place=UNSEEN) if n < seen else frame, 0.0)
    left = list(Player(engine, clock=lambda: 0.0, watch=watch).left())
    engine.check_integrity()
    return rows, sorted(left, key=lambda frame: frame.ordinal)


def _version(ordinal: int, changes: Mapping[int, Settings]) -> int:
    return sum(changed <= ordinal for changed in changes)


@pytest.mark.parametrize(
    ("bank", "changes", "running"),
    [
        pytest.param(FOURTH, {}, {8}, id="a write is due"),
        pytest.param(replace(FOURTH, interval=20), {}, set(), id="none is due"),
        pytest.param(
            BankSettings(policy=BankPolicy.QUEUE, max_frames=2, interval=3, fusion_threshold=0.8),
            {},
            {6, 9},
            id="a queue",
        ),
        pytest.param(
            replace(FOURTH, interval=20, prompt_change=PromptChange.CLEAR),
            {7: replace(BASE, prompt="b")},
            {7, 8, 9, 10},  # What 8 and later ones find is known when 7 has run: all have come before.
            id="a prompt clears it",
        ),
        pytest.param(
            replace(FOURTH, interval=20, prompt_change=PromptChange.FADE),
            {7: replace(BASE, prompt="b")},
            {7, 8, 9, 10},
            id="a prompt fades",
        ),
        pytest.param(
            replace(FOURTH, interval=20),
            {6: replace(BASE, strength=0.9)},
            {6, 7, 8, 9, 10},
            id="another timestep",
        ),
        pytest.param(None, {}, set(), id="no bank"),
    ],
)
def test_what_is_replayed_runs_only_where_it_changes_the_bank_and_the_rest_is_bit_equal(
    bank: BankSettings | None, changes: dict[int, Settings], running: set[int]
) -> None:
    latents = video(FRAMES)
    never_moved = tiny_engine(tiny_bank(1, size_frames=2.0), max_batch=1)
    never_moved.open(banked("a", bank))
    _, expected = rows_and_frames(never_moved, 0, 0, changes, latents)
    here, there = (tiny_engine(tiny_bank(1, size_frames=2.0), max_batch=1) for _ in range(2))
    here.open(banked("a", bank))
    for n in range(MOVED):
        here.admit(entering("a", n, latents[n]), 0.0)
    assert frozen([here], "a") == MOVED - 1
    drain_all(here)
    there.import_(through_bytes(here.export("a")))
    rows, left = rows_and_frames(there, MOVED, SEEN, changes, latents)
    assert rows == STEPS * (len(running) + FRAMES - SEEN)
    assert [frame.ordinal for frame in left] == list(range(MOVED, FRAMES)), "each is answered"
    assert all(frame.planes == {} for frame in left if frame.ordinal < SEEN)
    for ours, theirs in zip(left[SEEN - MOVED :], expected[SEEN:], strict=True):
        assert torch.equal(content(ours), content(theirs)), f"frame {ours.ordinal} differs"  # type: ignore[arg-type]
    for ours, theirs in zip(there.export("a").memory, never_moved.export("a").memory, strict=True):
        assert ours.values == theirs.values
        assert all(map(torch.equal, ours.tensors, theirs.tensors))


def drain_all(engine: Engine) -> None:
    for _ in Player(engine, clock=lambda: 0.0).left():
        pass


@pytest.mark.parametrize("cut", CUTS)
def test_a_temporal_cache_takes_all_of_them_in_and_none_is_decoded(cut: str) -> None:
    """Whatever the cut: a span before the last step hands its latents on."""
    spans, count = spans_of(cut), 12
    expected = run(count, 0, *(cached_engine(span) for span in spans))
    found = run(count, 8, *(cached_engine(span) for span in spans))
    assert [frame.ordinal for frame in found] == list(range(count))
    assert all(frame.planes == {} for frame in found[:8])
    for ours, theirs in zip(found[8:], expected[8:], strict=True):
        assert torch.equal(content(ours), content(theirs))  # type: ignore[arg-type]


def run(count: int, seen: int, *engines: Engine) -> list[Frame[torch.Tensor]]:
    decoded = 0

    def watch(_: Engine, result: StepResult) -> None:
        nonlocal decoded
        if result.batch is not None and result.batch.kind is OperatorKind.DECODE:
            decoded += result.batch.rows

    players = Player(*engines, clock=lambda: 0.0, watch=watch)
    players.open(cached_spec())
    for n in range(count):
        frame = entering("a", n, toy_payload("a", n))
        engines[0].admit(replace(frame, place=UNSEEN) if n < seen else frame, 0.0)
    left = sorted(players.left(), key=lambda frame: frame.ordinal)
    assert decoded == count - seen
    return left


def test_one_that_was_lost_stays_lost() -> None:
    engine = cached_engine()
    engine.open(cached_spec())
    engine.admit(replace(entering("a", 0, None), place=UNSEEN), 0.0)
    assert [frame.is_lost for frame in drain(engine)] == [True]
