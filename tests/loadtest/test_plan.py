"""Schedules: when streams start and frames are due; what frames carry."""

from __future__ import annotations

import pickle
from dataclasses import replace
from itertools import pairwise
from statistics import mean

import pytest
from rearview.samples import sample_clip_path

from loadtest.payloads import JpegFrames, OpaquePayloads, clip_frames, clip_jpegs
from loadtest.plan import Arrival, ClosedLoop, LoadPlan, OpenLoop, stream_starts

pytestmark = pytest.mark.unit

PLAN = LoadPlan("host:1", OpenLoop(30.0, 2.0), streams=4)


def test_frames_are_due_at_their_rate_whatever_happens() -> None:
    pace = OpenLoop(30.0, 2.0)

    assert pace.frames == 60
    assert pace.due_offset_s(45) == pytest.approx(1.5)


def test_spread_streams_take_turns_within_one_frame_interval() -> None:
    assert stream_starts(PLAN) == pytest.approx([0, 1 / 120, 2 / 120, 3 / 120])


def test_together_is_the_worst_phase() -> None:
    assert stream_starts(replace(PLAN, arrival=Arrival.TOGETHER)) == [0.0] * 4


def test_poisson_arrivals_have_their_rate_and_repeat_with_their_seed() -> None:
    plan = replace(PLAN, arrival=Arrival.POISSON, arrival_rate=5.0, streams=2000)
    starts = stream_starts(plan)
    gaps = [after - before for before, after in pairwise(starts)]

    assert mean(gaps) == pytest.approx(0.2, rel=0.1)
    assert min(gaps) > 0
    assert stream_starts(plan) == starts
    assert stream_starts(replace(plan, seed=1)) != starts


def test_a_closed_loop_starts_at_once() -> None:
    assert stream_starts(replace(PLAN, pace=ClosedLoop(10), streams=2)) == [0.0, 0.0]


def test_the_token_stays_out_of_a_printed_plan() -> None:
    assert "secret" not in repr(replace(PLAN, token="secret"))


def test_an_opaque_image_matches_its_own_stream_and_frame_only() -> None:
    payloads = OpaquePayloads(1000)
    image = payloads.image(2, 7)

    assert len(image) == 1000
    assert payloads.matches(2, 7, image)
    assert not payloads.matches(2, 8, image)
    assert not payloads.matches(3, 7, image)
    assert not payloads.matches(2, 7, image[:-1])


def test_a_clip_becomes_jpegs_that_repeat() -> None:
    frames = clip_frames(sample_clip_path(), width=64, height=48, limit=3)
    payloads = JpegFrames(clip_jpegs(frames))

    assert [frame.shape for frame in frames] == [(48, 64, 3)] * 3
    assert payloads.image(0, 4) == payloads.jpegs[1]
    assert payloads.matches(0, 4, payloads.jpegs[2])
    assert not payloads.matches(0, 4, payloads.jpegs[2][:-2])
    assert pickle.loads(pickle.dumps(payloads)) == payloads
