"""From domain events to metrics: the only place that knows which event moves which figure."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any, TypeAlias, assert_never

from rearview.contract.events import (
    BatchRun,
    CallEnded,
    CheckpointTaken,
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
)
from rearview.contract.frame import Timing
from rearview.telemetry.metrics import Metrics

__all__ = ["MetricsListener"]

_Rarer: TypeAlias = (
    FirstPicture
    | FillerSent
    | OutputsForgotten
    | SlotsOffered
    | SlotsTaken
    | SessionOpened
    | SessionClosed
    | StreamOpened
    | StreamClosed
    | CallEnded
    | FileReloaded
    | OpenRefused
    | SessionMoved
    | CheckpointTaken
    | ReplicaCondemned
    | ReplicasWanted
)
"""Than those of every frame."""


class MetricsListener:
    """A sink of events that counts them in the metrics of its process.

    The events of every frame come first. Their label sets are few, and looking one up costs more than
    counting it, so they are kept.
    """

    def __init__(self, metrics: Metrics) -> None:
        self._metrics = metrics
        self._counted: Callable[..., Any] = functools.cache(lambda metric, *labels: metric.labels(*labels))

    def __call__(self, event: Event) -> None:
        """Count one event."""
        metrics, counted = self._metrics, self._counted
        match event:
            case LinkBytes(peer, direction, num_bytes):
                counted(metrics.link_bytes, peer, direction.value).inc(num_bytes)
            case FrameLeftSpan(Timing(span, queue_s, compute_s)):
                counted(metrics.span_queue_seconds, span).observe(queue_s)
                counted(metrics.span_compute_seconds, span).observe(compute_s)
            case BatchRun(span, rows, queue_age_s, seconds, failure, is_accelerated, is_fallback):
                counted(metrics.batch_rows, span).observe(rows)
                counted(metrics.forward_seconds, span).observe(seconds)
                if is_accelerated:
                    counted(metrics.forwards_accelerated, span).inc()
                if is_fallback:
                    counted(metrics.graph_fallbacks, span).inc()
                counted(metrics.queue_age_seconds, span).set(queue_age_s)
                if failure is not None:
                    metrics.forwards_failed.labels(span, failure.value).inc()
            case ImageCoded(coding, seconds):
                counted(metrics.image_codec_seconds, coding.value).observe(seconds)
            case FrameAnswered(model, latency_s, is_late, jitter_s):
                metrics.frame_translated(model, latency_s, is_late=is_late, jitter_s=jitter_s)
            case Played(tenant, played_s, stalled_s, queued_s):
                metrics.played(tenant, played=played_s, stalled=stalled_s, queued=queued_s)
            case FrameDropped(drop_reason):
                metrics.frame_dropped(drop_reason)
            case FrameUsed(tenant=tenant, outcome=outcome, pixel_steps=pixel_steps, device_s=device_s):
                counted(metrics.usage_frames, tenant, outcome).inc()
                counted(metrics.usage_pixel_steps, tenant).inc(pixel_steps)
                counted(metrics.usage_device_seconds, tenant).inc(device_s)
            case FrameTraced():
                metrics.frames_traced.inc()
            case _:
                self._count(event)

    def _count(self, event: _Rarer) -> None:
        metrics = self._metrics
        match event:
            case FirstPicture(model, seconds):
                metrics.first_picture_seconds.labels(model).observe(seconds)
            case FillerSent():
                metrics.filler_frames.inc()
            case OutputsForgotten(span, count):
                metrics.outputs_forgotten.labels(span).inc(count)
            case SlotsOffered(span, slots, max_batch):
                metrics.replica_started(span, slots, max_batch)
            case SlotsTaken(span, slots):
                metrics.slots_used.labels(span).set(slots)
            case SessionOpened(tenant):
                metrics.sessions_opened.labels(tenant).inc()
            case SessionClosed(tenant):
                metrics.sessions_closed.labels(tenant).inc()
            case StreamOpened() | StreamClosed():
                metrics.streams_open.inc(1 if isinstance(event, StreamOpened) else -1)
            case CallEnded(reason):
                metrics.calls_ended.labels(reason.name.lower()).inc()
            case FileReloaded(name, is_good):
                metrics.file_reloads.labels(name, "good" if is_good else "broken").inc()
            case OpenRefused(reason, tenant, waited_s):
                metrics.open_refused(reason)
                metrics.played(tenant, queued=waited_s)
            case SessionMoved(continuity, seconds, planned):
                kind = "move" if planned else "recovery"
                metrics.session_move_seconds.labels(kind, continuity.value).observe(seconds)
            case CheckpointTaken(num_bytes, seconds):
                metrics.checkpoint_bytes.inc(num_bytes)
                metrics.checkpoint_seconds.observe(seconds)
            case ReplicaCondemned(span, cause):
                metrics.replicas_condemned.labels(span, cause.value).inc()
            case ReplicasWanted(span, wanted, leaving, why):
                metrics.replicas_decided(span, wanted, leaving, why)
            case _:
                assert_never(event)
