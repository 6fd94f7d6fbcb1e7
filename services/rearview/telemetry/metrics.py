"""Every metric of the service, in one place.

Each process (an ingress, a replica of a span) makes one `Metrics` on its own registry, which `exposition`
serves, so that several of them can live in one test process. Observing is cheap (microseconds) but stays off
the engine: the stage and the ingress observe, the engine never imports this. No label holds a session id, a
prompt or anything else without a bound.
"""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Callable

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram
from prometheus_client.process_collector import ProcessCollector

from rearview.contract.failure import Failure
from rearview.errors import DropReason, Reason
from rearview.telemetry.counted import CountedGauge
from rearview.telemetry.scaling_metrics import ScalingMetrics
from rearview.telemetry.usage_metrics import UsageMetrics

__all__ = ["FrameRate", "Metrics", "new_registry"]

_FRAME_BUCKETS_S = (
    0.005, 0.010, 0.020, 0.033, 0.040, 0.050, 0.066, 0.080, 0.100, 0.133, 0.200, 0.333, 0.5, 1.0, 2.0, 5.0,
)  # fmt: skip
"""Around one to three frame intervals at 30 FPS."""
_SPAN_BUCKETS_S = (
    0.001, 0.002, 0.005, 0.010, 0.015, 0.020, 0.033, 0.050, 0.066, 0.100, 0.200, 0.5, 1.0, 2.0,
)  # fmt: skip
_JITTER_BUCKETS_S = (0.001, 0.002, 0.005, 0.010, 0.020, 0.033, 0.050, 0.100, 0.200, 0.5, 1.0)
_FIRST_BUCKETS_S = (0.05, 0.1, 0.2, 0.3, 0.5, 0.75, 1.0, 2.0, 5.0, 10.0, 30.0)
_CODEC_BUCKETS_S = (0.0002, 0.0005, 0.001, 0.0015, 0.002, 0.003, 0.005, 0.010, 0.020, 0.050, 0.100)
_MOVE_BUCKETS_S = (0.01, 0.02, 0.05, 0.1, 0.2, 0.35, 0.5, 1.0, 2.0, 4.0, 10.0, 30.0)
_ROW_BUCKETS = (1, 2, 3, 4, 6, 8, 12, 16, 24, 32, 48, 64, 128, 256)
_RATE_WINDOW_S = 5.0
PLAY_STATES = ("played", "stalled", "queued")


class FrameRate:
    """Events per second over the last `window_s` seconds. Thread-safe; `clock` is monotonic seconds."""

    def __init__(self, window_s: float = _RATE_WINDOW_S, clock: Callable[[], float] = time.monotonic) -> None:
        self._window_s = window_s
        self._clock = clock
        self._times: deque[float] = deque()
        self._lock = threading.Lock()

    def count(self) -> None:
        """One event, now."""
        with self._lock:
            self._trim().append(self._clock())

    def per_second(self) -> float:
        """Events in the window divided by its length."""
        with self._lock:
            return len(self._trim()) / self._window_s

    def _trim(self) -> deque[float]:
        oldest = self._clock() - self._window_s
        while self._times and self._times[0] <= oldest:
            self._times.popleft()
        return self._times


class _FrameMetrics:
    """Of the answers that an ingress gives."""

    def __init__(self, registry: CollectorRegistry, clock: Callable[[], float]) -> None:
        self.frame_latency_seconds = Histogram(
            "rearview_frame_latency_seconds",
            "From a frame's receipt by the ingress to its picture's hand-over to gRPC.",
            ["model"],
            buckets=_FRAME_BUCKETS_S,
            registry=registry,
        )
        self.frame_jitter_seconds = Histogram(
            "rearview_frame_jitter_seconds",
            "How far the time between two pictures is from the time between their frames, either way.",
            ["model"],
            buckets=_JITTER_BUCKETS_S,
            registry=registry,
        )
        self.frames_late = Counter(
            "rearview_frames_late_total",
            "Pictures that could be sent only after their frame's deadline.",
            ["model"],
            registry=registry,
        )
        self.frames = Counter(
            "rearview_frames_total",
            "Frames answered, by outcome: translated or dropped.",
            ["outcome"],
            registry=registry,
        )
        self.frames_dropped = Counter(
            "rearview_frames_dropped_total",
            "Frames answered without a picture, by reason.",
            ["reason"],
            registry=registry,
        )
        self.frames_traced = Counter(
            "rearview_frames_traced_total",
            "Frames answered of which a trace was made.",
            registry=registry,
        )
        self.filler_frames = Counter(
            "rearview_filler_frames_total",
            "Frames repeated by the ingress, unseen, so that a temporal cache could warm up.",
            registry=registry,
        )
        self.frames_per_second = Gauge(
            "rearview_frames_per_second",
            f"Pictures per second over the last {_RATE_WINDOW_S:g} seconds.",
            registry=registry,
        )
        self._rate = FrameRate(clock=clock)
        self.frames_per_second.set_function(self._rate.per_second)


class _ViewerMetrics:
    """Of what those who watch see."""

    def __init__(self, registry: CollectorRegistry) -> None:
        self.first_picture_seconds = Histogram(
            "rearview_first_picture_seconds",
            "From the request for a session until its first picture could be sent, queueing included.",
            ["model"],
            buckets=_FIRST_BUCKETS_S,
            registry=registry,
        )
        self.play_seconds = Counter(
            "rearview_play_seconds_total",
            "Session time by what a viewer saw: played (the next picture was there when it was due), stalled"
            " (it was not) or queued (there was no session yet).",
            ["tenant", "state"],
            registry=registry,
        )

    def played(self, tenant: str, **seconds: float) -> None:
        """Session time by state; every state has a series once one has."""
        for state in PLAY_STATES:
            self.play_seconds.labels(tenant, state).inc(seconds.get(state, 0.0))


class _SpanMetrics:
    """Of the replicas of a span."""

    def __init__(self, registry: CollectorRegistry) -> None:
        self.span_queue_seconds = Histogram(
            "rearview_span_queue_seconds",
            "Time that a frame waited for its turn in a span.",
            ["span"],
            buckets=_SPAN_BUCKETS_S,
            registry=registry,
        )
        self.span_compute_seconds = Histogram(
            "rearview_span_compute_seconds",
            "Time that a frame spent in a span's networks, the rest of its batches included.",
            ["span"],
            buckets=_SPAN_BUCKETS_S,
            registry=registry,
        )
        self.queue_age_seconds = Gauge(
            "rearview_queue_age_seconds",
            "Age of the oldest row that waits in a span; 0 with none.",
            ["span"],
            registry=registry,
        )
        self.outputs_forgotten = Counter(
            "rearview_outputs_forgotten_total",
            "Outputs let go of before they were acknowledged: after a resume their frames are dropped.",
            ["span"],
            registry=registry,
        )
        self.slots = Gauge(
            "rearview_slots", "Sessions that the replica's memory can hold.", ["span"], registry=registry
        )
        self.slots_used = Gauge(
            "rearview_slots_used", "Sessions that the replica's memory holds.", ["span"], registry=registry
        )


class _ForwardMetrics:
    """Of what the replicas of a span run."""

    def __init__(self, registry: CollectorRegistry) -> None:
        self.batch_rows = Histogram(
            "rearview_batch_rows",
            "Rows in one forward.",
            ["span"],
            buckets=_ROW_BUCKETS,
            registry=registry,
        )
        self.batch_rows_max = Gauge(
            "rearview_batch_rows_max", "Rows in one forward, at most.", ["span"], registry=registry
        )
        self.forward_seconds = Histogram(
            "rearview_forward_seconds",
            "Time of one forward with its writes to memory; the rate of its sum is how busy a replica is.",
            ["span"],
            buckets=_SPAN_BUCKETS_S,
            registry=registry,
        )
        self.forwards_failed = Counter(
            "rearview_forwards_failed_total",
            "Forwards of which nothing came, by cause: no_memory, not_finite or raised. Rows run again.",
            ["span", "cause"],
            registry=registry,
        )
        self.forwards_accelerated = Counter(
            "rearview_forwards_accelerated_total",
            "Forwards whose network was replayed from a graph, or ran compiled.",
            ["span"],
            registry=registry,
        )
        self.graph_fallbacks = Counter(
            "rearview_graph_fallbacks_total",
            "Forwards whose network has graphs, or is compiled, and ran as it is for want of one that fits.",
            ["span"],
            registry=registry,
        )


class _SessionMetrics:
    """Of sessions and streams, and of what an ingress spends on them."""

    def __init__(self, registry: CollectorRegistry) -> None:
        self.sessions = CountedGauge(
            "rearview_sessions",
            "Sessions of this ingress: streaming, detached (no stream feeds it), moving (its frames wait for"
            " another lane, or for its replicas to stand still), parked.",
            ["tenant", "state"],
            registry=registry,
        )
        self.sessions_opened = Counter(
            "rearview_sessions_opened_total",
            "Sessions that began at this ingress, taken over ones included.",
            ["tenant"],
            registry=registry,
        )
        self.sessions_closed = Counter(
            "rearview_sessions_closed_total",
            "Sessions that ended at this ingress, or went on at another one.",
            ["tenant"],
            registry=registry,
        )
        self.streams_open = Gauge(
            "rearview_streams_open", "gRPC streams that are open on this ingress.", registry=registry
        )
        self.session_opens_refused = Counter(
            "rearview_session_opens_refused_total",
            "Opens and resumes that were refused, by reason.",
            ["reason"],
            registry=registry,
        )
        self.calls_ended = Counter(
            "rearview_calls_ended_total",
            "Calls of any method that the service ended with an error, by reason.",
            ["reason"],
            registry=registry,
        )
        self.file_reloads = Counter(
            "rearview_file_reloads_total",
            "Changes of watched files, by file and outcome: good, or broken and not in force.",
            ["file", "outcome"],
            registry=registry,
        )
        self.replicas_condemned = Counter(
            "rearview_replicas_condemned_total",
            "Replicas that this ingress took for dead, by span and cause: silent, hung or broken.",
            ["span", "cause"],
            registry=registry,
        )
        self.image_codec_seconds = Histogram(
            "rearview_image_codec_seconds",
            "Time to decode or encode one image.",
            ["operation"],
            buckets=_CODEC_BUCKETS_S,
            registry=registry,
        )


class _MoveMetrics:
    """Of sessions that go on elsewhere."""

    def __init__(self, registry: CollectorRegistry) -> None:
        self.session_move_seconds = Histogram(
            "rearview_session_move_seconds",
            "From the loss of a session's replicas (recovery), or from when it was held (move), until its"
            " frames go on, by continuity: exact, approximate or reset.",
            ["kind", "continuity"],
            buckets=_MOVE_BUCKETS_S,
            registry=registry,
        )
        self.checkpoint_seconds = Histogram(
            "rearview_checkpoint_seconds",
            "From the request for a session's checkpoint until its bytes were there.",
            buckets=_MOVE_BUCKETS_S,
            registry=registry,
        )
        self.checkpoint_bytes = Counter(
            "rearview_checkpoint_bytes_total", "Bytes of checkpoints taken.", registry=registry
        )


class Metrics(
    _FrameMetrics,
    _ViewerMetrics,
    _SpanMetrics,
    _ForwardMetrics,
    _SessionMetrics,
    _MoveMetrics,
    UsageMetrics,
    ScalingMetrics,
):
    """The metrics of one process. Use the methods where there is one; else the attribute."""

    def __init__(self, registry: CollectorRegistry, *, clock: Callable[[], float] = time.monotonic) -> None:
        self.registry = registry
        _FrameMetrics.__init__(self, registry, clock)
        _ViewerMetrics.__init__(self, registry)
        _SpanMetrics.__init__(self, registry)
        _ForwardMetrics.__init__(self, registry)
        _SessionMetrics.__init__(self, registry)
        _MoveMetrics.__init__(self, registry)
        ScalingMetrics.__init__(self, registry)
        UsageMetrics.__init__(self, registry)
        self.link_bytes = Counter(
            "rearview_link_bytes_total",
            "Bytes that links carried, by peer (span or ingress) and direction (sent or received).",
            ["peer", "direction"],
            registry=registry,
        )
        self._start_at_zero()

    def replica_started(self, span: str, slots: int, max_batch: int) -> None:
        """A replica of that span holds so many sessions at most, and so many rows of them in one forward."""
        self.slots.labels(span).set(slots)
        self.batch_rows_max.labels(span).set(max_batch)
        self.forwards_accelerated.labels(span)
        self.graph_fallbacks.labels(span)
        for failure in Failure:  # As in `_start_at_zero`: no other span is served here.
            self.forwards_failed.labels(span, failure.value)

    def frame_translated(
        self, model: str, latency_s: float, *, is_late: bool = False, jitter_s: float | None = None
    ) -> None:
        """A frame was answered with a picture, `latency_s` after its receipt."""
        self.frame_latency_seconds.labels(model).observe(latency_s)
        self.frames_late.labels(model).inc(is_late)
        if jitter_s is not None:
            self.frame_jitter_seconds.labels(model).observe(jitter_s)
        self.frames.labels("translated").inc()
        self._rate.count()

    def frame_dropped(self, reason: DropReason) -> None:
        """A frame was answered without a picture."""
        self.frames.labels("dropped").inc()
        self.frames_dropped.labels(reason.name.lower()).inc()

    def open_refused(self, reason: Reason) -> None:
        """An open or a resume was refused."""
        self.session_opens_refused.labels(reason.name.lower()).inc()

    def _start_at_zero(self) -> None:
        # A series that first appears with its first event hides that event from rate().
        for outcome in ("translated", "dropped"):
            self.frames.labels(outcome)
        for drop_reason in DropReason:
            self.frames_dropped.labels(drop_reason.name.lower())


def new_registry() -> CollectorRegistry:
    """An empty registry with the process's own metrics (CPU, memory, file descriptors)."""
    registry = CollectorRegistry()
    ProcessCollector(registry=registry)
    return registry
