"""Traces, handed to OpenTelemetry's exporter: all of a frame's spans at once, when its answer has gone.

The ingress makes those of the replicas too, from the times that came back with the frame, so that no replica
needs an exporter, and nothing is open if a process dies. The spans are the SDK's own; what is not used of it
is its tracer, which reads the clock itself.
"""

from __future__ import annotations

import asyncio
import random
import threading
import time
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from rearview.contract.events import Event, FrameTraced
from rearview.contract.traces import FrameTrace
from rearview.errors import ConfigError
from rearview.telemetry.spans import pieces_of
from rearview.telemetry_config import TracesConfig, check_traces

if TYPE_CHECKING:
    from opentelemetry.sdk.trace import SpanProcessor
    from opentelemetry.trace import SpanContext

__all__ = ["TraceListener", "open_traces"]

FLUSH_S = 5.0
"""How long a stop waits for what is still to be exported."""
BATCH_SPANS = 512
DELAY_S = 1.0


def open_traces(
    config: TracesConfig, service: str, instance: str, environment: Mapping[str, str], credentials: Any
) -> TraceListener:
    """Begin to export as `config` says. `service`, `instance`: names of the deployment and of this ingress.
    `credentials`: gRPC's, for `https`. Raises ConfigError for a header whose variable is not in
    `environment`, or if OpenTelemetry is missing.
    """
    check_traces(config)
    from opentelemetry.exporter.otlp.proto.grpc.trace_exporter import OTLPSpanExporter
    from opentelemetry.sdk.trace.export import BatchSpanProcessor

    is_insecure = config.endpoint.startswith("http://")
    exporter = OTLPSpanExporter(
        endpoint=config.endpoint,
        insecure=is_insecure,
        credentials=credentials,
        headers=tuple(_headers(config, environment)),
        timeout=config.timeout_s,
    )
    processor = BatchSpanProcessor(exporter, config.max_queue, 1000 * DELAY_S, BATCH_SPANS)
    return TraceListener(processor, service, instance)


class TraceListener:
    """A sink of events that makes traces of those of frames."""

    def __init__(self, processor: SpanProcessor, service: str, instance: str) -> None:
        from opentelemetry.sdk.resources import Resource
        from opentelemetry.sdk.util.instrumentation import InstrumentationScope

        self._processor = processor
        self._resource = Resource.create(
            {"service.name": service, "service.namespace": "rearview", "service.instance.id": instance}
        )
        self._scope = InstrumentationScope("rearview")

    def __call__(self, event: Event) -> None:
        """Hand over a frame's spans."""
        if isinstance(event, FrameTraced):
            self._export(event.trace)

    async def stop(self) -> None:
        """Export what waits, as far as there is time."""
        # The SDK's own limit is 30 s, and a receiver that is away takes all of it.
        closing = threading.Thread(target=self._processor.shutdown, name="traces", daemon=True)
        closing.start()
        await asyncio.to_thread(closing.join, FLUSH_S)

    def _export(self, trace: FrameTrace) -> None:
        from opentelemetry.sdk.trace import ReadableSpan
        from opentelemetry.trace import SpanKind
        from opentelemetry.trace.status import Status, StatusCode

        wall_s = time.time() - time.monotonic()
        trace_id = int.from_bytes(trace.trace_id)
        pieces = pieces_of(trace, wall_s)
        contexts = [_context(trace_id, random.getrandbits(64) or 1) for _ in pieces]
        links = _links(trace)
        for piece, context in zip(pieces, contexts, strict=True):
            is_whole = piece.parent is None
            self._processor.on_end(
                ReadableSpan(
                    piece.name,
                    context,
                    None if piece.parent is None else contexts[piece.parent],
                    self._resource,
                    piece.attributes,
                    links=links if is_whole else (),
                    kind=SpanKind.SERVER if is_whole else SpanKind.INTERNAL,
                    status=Status(StatusCode.ERROR if piece.is_error else StatusCode.UNSET),
                    start_time=_nanoseconds(piece.start_s + wall_s),
                    end_time=_nanoseconds(piece.end_s + wall_s),
                    instrumentation_scope=self._scope,
                )
            )


def _context(trace_id: int, span_id: int, *, is_remote: bool = False, is_sampled: bool = True) -> SpanContext:
    from opentelemetry.trace import SpanContext, TraceFlags

    return SpanContext(trace_id, span_id, is_remote, TraceFlags(int(is_sampled)))


def _links(trace: FrameTrace) -> Any:
    """To the trace of the stream: it lasts for hours, and is no place for thousands of frames."""
    from opentelemetry.trace import Link

    caller = trace.caller
    if caller is None:
        return ()
    ids = int.from_bytes(caller.trace_id), int.from_bytes(caller.span_id)
    return (Link(_context(*ids, is_remote=True, is_sampled=caller.is_sampled)),)


def _nanoseconds(seconds: float) -> int:
    return int(seconds * 1e9)


def _headers(config: TracesConfig, environment: Mapping[str, str]) -> list[tuple[str, str]]:
    for name, variable in config.headers_env.items():
        if not environment.get(variable):
            text = f"telemetry.traces.headers_env: {name} is to be in {variable}, which is not set"
            raise ConfigError(text)
    return [(name.lower(), environment[variable]) for name, variable in config.headers_env.items()]
