"""From domain events to metrics: the only place that knows which event moves which figure."""

from __future__ import annotations

from typing import assert_never

from rearview.contract.events import (
    BatchRun,
    Event,
    FillerSent,
    FrameAnswered,
    FrameDropped,
    FrameLeftSpan,
    ImageCoded,
    LinkBytes,
    OpenRefused,
    SessionClosed,
    SessionOpened,
    SlotsOffered,
    SlotsTaken,
    StreamClosed,
    StreamOpened,
)
from rearview.contract.frame import Timing
from rearview.telemetry.metrics import Metrics

__all__ = ["MetricsListener"]


class MetricsListener:
    """A sink of events that counts them in the metrics of its process."""

    def __init__(self, metrics: Metrics) -> None:
        self._metrics = metrics

    def __call__(self, event: Event) -> None:
        """Count one event."""
        metrics = self._metrics
        match event:
            case FrameAnswered(model, latency_s):
                metrics.frame_translated(model, latency_s)
            case FrameDropped(drop_reason):
                metrics.frame_dropped(drop_reason)
            case FrameLeftSpan(Timing(span, queue_s, compute_s)):
                metrics.span_queue_seconds.labels(span).observe(queue_s)
                metrics.span_compute_seconds.labels(span).observe(compute_s)
            case BatchRun(span, rows, queue_age_s):
                metrics.batch_rows.labels(span).observe(rows)
                metrics.queue_age_seconds.labels(span).set(queue_age_s)
            case ImageCoded(coding, seconds):
                metrics.image_codec_seconds.labels(coding.value).observe(seconds)
            case LinkBytes(peer, direction, num_bytes):
                metrics.link_bytes.labels(peer, direction.value).inc(num_bytes)
            case FillerSent():
                metrics.filler_frames.inc()
            case SlotsOffered(span, slots):
                metrics.slots.labels(span).set(slots)
            case SlotsTaken(span, slots):
                metrics.slots_used.labels(span).set(slots)
            case SessionOpened(tenant):
                metrics.sessions.labels(tenant).inc()
            case SessionClosed(tenant):
                metrics.sessions.labels(tenant).dec()
            case StreamOpened():
                metrics.streams_open.inc()
            case StreamClosed():
                metrics.streams_open.dec()
            case OpenRefused(reason):
                metrics.open_refused(reason)
            case _:
                assert_never(event)
