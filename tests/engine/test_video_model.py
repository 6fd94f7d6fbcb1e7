"""A causal video transformer and an autoencoder with state as rows and memories: docs/video-models.md.

diffusers' own classes, tiny and random; the plain path is theirs, on the whole clip.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from functools import cache

import pytest
import torch
from rearview.contract.chain import Span, chain
from rearview.contract.frame import PICTURE, Frame
from rearview.contract.session import SessionSpec
from rearview.contract.settings import Settings
from rearview.engine.engine import Engine
from rearview.engine.player import Clip, Player, planes_of
from rearview.engine.rows import StepResult
from rearview.engine.scheduler import CostTable, Scheduler
from rearview.engine.sessions import joined
from support.chunks import FRAMES
from support.video_model import (
    HEIGHT,
    REMEMBERED,
    SIGMAS,
    WIDTH,
    Networks,
    VideoModel,
    plainly,
    video_memories,
)
from torch import Tensor

pytestmark = [pytest.mark.unit, pytest.mark.filterwarnings("ignore:flex_attention called without")]

STEPS = len(SIGMAS) - 1
CHUNKS = REMEMBERED + 3  # Past the end of what is remembered.
LENGTH = 1 + FRAMES * (CHUNKS - 1)
SETTINGS = Settings(prompt="a bronze statue", steps=STEPS, seed=3)
SPEC = SessionSpec("a", WIDTH, HEIGHT, STEPS, SETTINGS)
PIECES = (
    Span("encode", chain(STEPS)[:2]),
    Span("denoise", chain(STEPS)[2:3]),
    Span("decode", chain(STEPS)[3:]),
)
"""One denoising step shares the span of the encoder, one is alone."""


@cache
def model() -> VideoModel:
    return VideoModel(Networks())


@cache
def pictures(seed: int) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    coarse = torch.rand(LENGTH, 3, 8, 4, generator=generator)
    fine = torch.nn.functional.interpolate(coarse, size=(HEIGHT, WIDTH), mode="bilinear")
    return (fine * 255).round().to(torch.uint8).permute(0, 2, 3, 1).contiguous()


@cache
def plain(seed: int, settings: Settings = SETTINGS) -> Tensor:
    return plainly(Networks(), pictures(seed), settings)


def clip(seed: int, spec: SessionSpec = SPEC, lost: Sequence[int] = ()) -> Clip:
    frames = [None if at in lost else {PICTURE: each} for at, each in enumerate(pictures(seed))]
    return Clip(spec, frames)


def engine(span: Span | None = None) -> Engine:
    span = span or Span("fused", chain(STEPS))
    memories = video_memories(span, model(), num_slots=3)
    return Engine(span, model(), memories, Scheduler(CostTable(), 16))


def assert_same(found: Tensor, expected: Tensor, levels: int = 0) -> None:
    assert found.shape == expected.shape
    apart = (found.int() - expected.int()).abs()
    assert int(apart.max()) <= levels, f"{int(apart.max())} levels apart"


def whole(frames: Sequence[Frame[Tensor]]) -> Tensor:
    return torch.stack([planes_of(frame)[PICTURE] for frame in frames])


def test_the_past_counts() -> None:
    """Else all that follows would hold for a model that remembers nothing."""
    other = torch.cat([pictures(2)[:1], pictures(1)[1:]])
    changed = plainly(Networks(), other, SETTINGS)
    for chunk in range(1, 3):
        of_chunk = slice(1 + FRAMES * (chunk - 1), 1 + FRAMES * chunk)
        apart = (changed[of_chunk].float() - plain(1)[of_chunk].float()) / 255
        assert apart.square().mean().sqrt() > 0.01, f"chunk {chunk}"


def test_rows_of_chunks_are_the_whole_clip_at_once() -> None:
    played = Player(engine()).play(clip(1))["a"]
    assert [frame.ordinal for frame in played] == list(range(LENGTH))
    assert_same(whole(played), plain(1), levels=1)


def test_alone_is_batched() -> None:
    """The second begins two chunks after the first, so that they differ in what they remember."""
    other = replace(SPEC, session_id="b", settings=replace(SETTINGS, prompt="neon", seed=9))
    sizes = set()

    def watch(engine: Engine, result: StepResult) -> None:
        sizes.add(0 if result.batch is None else result.batch.rows)

    player = Player(engine(), watch=watch)
    found: dict[str, list[Frame[Tensor]]] = {"a": [], "b": []}
    player.open(SPEC)
    player.open(other)
    ahead = 2 * FRAMES
    for at in range(LENGTH + ahead):
        for name, seed, ordinal in (("a", 1, at), ("b", 2, at - ahead)):
            if 0 <= ordinal < LENGTH:
                player.admit(name, ordinal, {PICTURE: pictures(seed)[ordinal]})
        if at % FRAMES == 0:
            for frame in player.left():
                found[frame.session_id].append(frame)
    assert max(sizes) == 2
    assert_same(whole(found["a"]), plain(1), levels=1)
    assert_same(whole(found["b"]), plain(2, other.settings), levels=1)


def test_pieces_are_the_whole() -> None:
    fused = Player(engine()).play(clip(1))["a"]
    pieces = Player(*(engine(span) for span in PIECES)).play(clip(1))["a"]
    assert_same(whole(pieces), whole(fused))


@pytest.mark.parametrize("ordinal", [-1, 0, 3, FRAMES, 2 * FRAMES + 2])
def test_a_session_that_moves_anywhere_goes_on_as_if_it_had_not(ordinal: int) -> None:
    """Out of pieces into one engine; a move waits for the end of the chunk."""
    sources, target = [engine(span) for span in PIECES], engine()
    here, there = Player(*sources), Player(target)
    here.open(SPEC)
    sent = 0
    found = []

    def feed(until: int) -> None:
        nonlocal sent
        for at in range(sent, until):
            here.admit("a", at, {PICTURE: pictures(1)[at]})
        sent = max(sent, until)

    feed(ordinal + 1)
    end = max(each.freeze("a", ordinal) for each in sources)
    assert end + 1 == 0 or end % FRAMES == 0
    feed(end + 1)
    found += list(here.left())
    assert all(each.freeze("a", end) == end and each.is_quiet("a") for each in sources)
    target.import_(joined([each.export("a") for each in sources]))
    for at in range(end + 1, LENGTH):
        there.admit("a", at, {PICTURE: pictures(1)[at]})
    found += list(there.left())
    assert_same(whole(found), whole(Player(engine()).play(clip(1))["a"]))


def test_a_lost_frame_takes_no_other_with_it() -> None:
    """The neighbour stands in for it, whichever place of the chunk it had."""
    lost = [2, 2 * FRAMES]
    played = Player(engine()).play(clip(1, lost=lost))["a"]
    assert [frame.ordinal for frame in played if frame.is_lost] == lost
    given = pictures(1).clone()
    given[2], given[2 * FRAMES] = given[1], given[2 * FRAMES - 1]
    expected = plainly(Networks(), given, SETTINGS)
    for frame in played:
        if not frame.is_lost:
            assert_same(planes_of(frame)[PICTURE], expected[frame.ordinal], levels=1)
