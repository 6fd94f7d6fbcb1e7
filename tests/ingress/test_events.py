"""Domain events become the metrics that dashboards and alerts know."""

from __future__ import annotations

from collections.abc import Sequence
from typing import get_args

import pytest
from rearview.contract.beat import Cause
from rearview.contract.events import (
    BatchRun,
    CallEnded,
    CheckpointTaken,
    Coding,
    Direction,
    Event,
    FileReloaded,
    FillerSent,
    FirstPicture,
    FrameAnswered,
    FrameDropped,
    FrameLeftSpan,
    FrameTraced,
    FrameUsed,
    ImageCoded,
    LinkBytes,
    OpenRefused,
    OutputsForgotten,
    Played,
    ReplicaCondemned,
    ReplicasWanted,
    SessionClosed,
    SessionMoved,
    SessionOpened,
    SlotsOffered,
    SlotsTaken,
    StreamClosed,
    StreamOpened,
    no_events,
)
from rearview.contract.failure import Failure
from rearview.contract.frame import Timing
from rearview.contract.scaling import Why
from rearview.contract.stream import Continuity
from rearview.contract.traces import FrameTrace
from rearview.errors import DropReason, Reason
from rearview.telemetry.listener import MetricsListener
from rearview.telemetry.metrics import Metrics, new_registry

pytestmark = pytest.mark.unit

Expected = dict[str, float]
"""Sample, as in an exposition, to value."""

CASES: Sequence[tuple[Sequence[Event], Expected]] = [
    (
        [FrameAnswered("pocket", 0.04)],
        {
            'frames_total{outcome="translated"}': 1,
            'frame_latency_seconds_sum{model="pocket"}': 0.04,
            'frame_latency_seconds_count{model="pocket"}': 1,
        },
    ),
    (
        [FrameDropped(DropReason.LATE)],
        {'frames_total{outcome="dropped"}': 1, 'frames_dropped_total{reason="late"}': 1},
    ),
    ([FrameTraced(FrameTrace(b"t" * 16, "a", "alpha", "pocket", 0, 0, 0.0))], {"frames_traced_total": 1}),
    (
        [
            FrameUsed("alpha", "a", "pocket", 0, "translated", 8192, 0.25),
            FrameUsed("alpha", "a", "pocket", 1, "late", 8192, 0.5),
        ],
        {
            'usage_frames_total{tenant="alpha",outcome="translated"}': 1,
            'usage_frames_total{tenant="alpha",outcome="late"}': 1,
            'usage_pixel_steps_total{tenant="alpha"}': 16384,
            'usage_device_seconds_total{tenant="alpha"}': 0.75,
        },
    ),
    ([FillerSent(), FillerSent()], {"filler_frames_total": 2}),
    (
        [OutputsForgotten("fused", 3), OutputsForgotten("fused", 1)],
        {'outputs_forgotten_total{span="fused"}': 4},
    ),
    (
        [ImageCoded(Coding.DECODE, 0.002), ImageCoded(Coding.ENCODE, 0.003)],
        {
            'image_codec_seconds_sum{operation="decode"}': 0.002,
            'image_codec_seconds_sum{operation="encode"}': 0.003,
        },
    ),
    (
        [LinkBytes("ingress", Direction.SENT, 7), LinkBytes("fused", Direction.RECEIVED, 5)],
        {
            'link_bytes_total{peer="ingress",direction="sent"}': 7,
            'link_bytes_total{peer="fused",direction="received"}': 5,
        },
    ),
    ([StreamOpened(), StreamOpened(), StreamClosed()], {"streams_open": 1}),
    (
        [SessionOpened("alpha"), SessionOpened("alpha"), SessionClosed("alpha")],
        {'sessions_opened_total{tenant="alpha"}': 2, 'sessions_closed_total{tenant="alpha"}': 1},
    ),
    (
        [
            SessionMoved(Continuity.EXACT, 0.25, planned=False),
            SessionMoved(Continuity.RESET, 1, planned=True),
        ],
        {
            'session_move_seconds_sum{kind="recovery",continuity="exact"}': 0.25,
            'session_move_seconds_count{kind="move",continuity="reset"}': 1,
        },
    ),
    (
        [CheckpointTaken(4096, 0.5), CheckpointTaken(1024, 0.25)],
        {"checkpoint_bytes_total": 5120, "checkpoint_seconds_sum": 0.75, "checkpoint_seconds_count": 2},
    ),
    ([CallEnded(Reason.IDLE)], {'calls_ended_total{reason="idle"}': 1}),
    (
        [FileReloaded("tenants", is_good=True), FileReloaded("tenants", is_good=False)],
        {
            'file_reloads_total{file="tenants",outcome="good"}': 1,
            'file_reloads_total{file="tenants",outcome="broken"}': 1,
        },
    ),
    (
        [ReplicaCondemned("fused", Cause.HUNG)],
        {'replicas_condemned_total{span="fused",cause="hung"}': 1},
    ),
    (
        [OpenRefused(Reason.NO_CAPACITY, "alpha", 2.5), Played("alpha", queued_s=0.5)],
        {
            'session_opens_refused_total{reason="no_capacity"}': 1,
            'play_seconds_total{tenant="alpha",state="queued"}': 3.0,
        },
    ),
    (
        [Played("alpha", played_s=0.25), Played("alpha", played_s=0.5, stalled_s=0.125)],
        {
            'play_seconds_total{tenant="alpha",state="played"}': 0.75,
            'play_seconds_total{tenant="alpha",state="stalled"}': 0.125,
        },
    ),
    ([FirstPicture("pocket", 0.5)], {'first_picture_seconds_sum{model="pocket"}': 0.5}),
    (
        [FrameAnswered("pocket", 0.25, True, 0.125), FrameAnswered("pocket", 0.05)],
        {
            'frames_late_total{model="pocket"}': 1,
            'frame_jitter_seconds_sum{model="pocket"}': 0.125,
            'frame_jitter_seconds_count{model="pocket"}': 1,
        },
    ),
    (
        [SlotsOffered("fused", 16, 8), SlotsTaken("fused", 3), SlotsTaken("fused", 2)],
        {'slots{span="fused"}': 16, 'slots_used{span="fused"}': 2, 'batch_rows_max{span="fused"}': 8},
    ),
    (
        [BatchRun("fused", 3, 0.5, 0.03), BatchRun("fused", 4, 0.25, 0.04)],
        {
            'batch_rows_sum{span="fused"}': 7,
            'queue_age_seconds{span="fused"}': 0.25,
            'forward_seconds_sum{span="fused"}': 0.07,
        },
    ),
    (
        [
            SlotsOffered("one", 1, 8),
            BatchRun("one", 8, 0.0, 0.1, Failure.NO_MEMORY),
            BatchRun("one", 4, 0.0, 0.1),
            BatchRun("one", 4, 0.0, 0.1, is_accelerated=True),
            BatchRun("one", 5, 0.0, 0.1, is_fallback=True),
        ],
        {
            'batch_rows_count{span="one"}': 4,
            'forwards_accelerated_total{span="one"}': 1,
            'graph_fallbacks_total{span="one"}': 1,
            'forwards_failed_total{span="one",cause="no_memory"}': 1,
            'forwards_failed_total{span="one",cause="not_finite"}': 0,
            'forwards_failed_total{span="one",cause="raised"}': 0,
        },
    ),
    (
        [FrameLeftSpan(Timing("fused", 0.001, 0.03))],
        {
            'span_queue_seconds_sum{span="fused"}': 0.001,
            'span_compute_seconds_sum{span="fused"}': 0.03,
        },
    ),
    (
        [ReplicasWanted("fused", 3, 0, Why.LOAD), ReplicasWanted("fused", 2, 1, Why.HOLD)],
        {
            'replicas_wanted{span="fused"}': 2,
            'replicas_leaving{span="fused"}': 1,
            'scaling_reason{span="fused",why="hold"}': 1,
            'scaling_reason{span="fused",why="load"}': 0,
        },
    ),
]


def samples(metrics: Metrics) -> Expected:
    """Every sample of ours, by its name and labels."""
    found = {}
    for family in metrics.registry.collect():
        for sample in family.samples:
            labels = ",".join(f'{name}="{value}"' for name, value in sample.labels.items())
            found[f"{sample.name}{{{labels}}}" if labels else sample.name] = sample.value
    return {name.removeprefix("rearview_"): value for name, value in found.items()}


@pytest.mark.parametrize(("events", "expected"), CASES, ids=lambda one: type(next(iter(one))).__name__)
def test_events_move_the_figures_of_dashboards(events: Sequence[Event], expected: Expected) -> None:
    metrics = Metrics(new_registry())
    listener = MetricsListener(metrics)
    for event in events:
        listener(event)
    found = samples(metrics)
    assert {name: found.get(name) for name in expected} == pytest.approx(expected)


def test_every_event_is_counted() -> None:
    assert {type(event) for events, _ in CASES for event in events} == set(get_args(Event))


def test_nobody_has_to_listen() -> None:
    for events, _ in CASES:
        for event in events:
            no_events(event)
