"""A receiver of traces: the service that an OpenTelemetry collector has, which keeps what comes."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any

import grpc
from opentelemetry.proto.collector.trace.v1 import trace_service_pb2 as pb
from opentelemetry.proto.collector.trace.v1 import trace_service_pb2_grpc
from opentelemetry.proto.trace.v1.trace_pb2 import Span

from support.raw_stream import eventually

__all__ = ["Receiver", "Tree", "receiver"]


class Receiver(trace_service_pb2_grpc.TraceServiceServicer):
    """What was exported to it."""

    def __init__(self) -> None:
        self.requests: list[pb.ExportTraceServiceRequest] = []
        self.metadata: list[Mapping[str, Any]] = []
        self.endpoint = ""

    async def Export(self, request: Any, context: Any) -> pb.ExportTraceServiceResponse:  # noqa: N802
        self.requests.append(request)
        self.metadata.append(dict(context.invocation_metadata()))
        return pb.ExportTraceServiceResponse()

    @property
    def spans(self) -> list[Span]:
        scopes = (scope for each in self.requests for one in each.resource_spans for scope in one.scope_spans)
        return [span for scope in scopes for span in scope.spans]

    @property
    def traces(self) -> dict[bytes, Tree]:
        """By id."""
        found: defaultdict[bytes, Tree] = defaultdict(Tree)
        for span in self.spans:
            found[span.trace_id].spans.append(span)
        return dict(found)

    async def traced(self, count: int) -> list[Tree]:
        """The traces, in the order of their frames, once there are so many and each is whole."""
        await eventually(lambda: sum(span.name == "frame" for span in self.spans) >= count)
        return sorted(self.traces.values(), key=lambda tree: tree.of("rearview.frame.place"))


@dataclass
class Tree:
    """The spans of one trace."""

    spans: list[Span] = field(default_factory=list)

    @property
    def root(self) -> Span:
        (root,) = (span for span in self.spans if not span.parent_span_id)
        return root

    def of(self, attribute: str) -> Any:
        """What its root says."""
        return attributes(self.root)[attribute]

    def parts(self, span: Span) -> Sequence[Span]:
        """Of a span, in the order of time."""
        return sorted(
            (each for each in self.spans if each.parent_span_id == span.span_id),
            key=lambda each: (each.start_time_unix_nano, each.end_time_unix_nano),
        )

    def named(self, name: str) -> list[Span]:
        return [span for span in self.spans if span.name == name]

    def check(self, slack_ns: int = 2000) -> None:
        """Assert that every span lies within its parent, and that those of one parent follow each other."""
        by_id = {span.span_id: span for span in self.spans}
        for span in self.spans:
            assert span.start_time_unix_nano <= span.end_time_unix_nano, span
            if span.parent_span_id:
                parent = by_id[span.parent_span_id]
                assert span.start_time_unix_nano >= parent.start_time_unix_nano - slack_ns, (span, parent)
                assert span.end_time_unix_nano <= parent.end_time_unix_nano + slack_ns, (span, parent)
            ends = 0
            for part in self.parts(span):
                assert part.start_time_unix_nano >= ends - slack_ns, (part, span)
                ends = part.end_time_unix_nano


def attributes(span: Span) -> dict[str, Any]:
    """As plain values."""
    return {each.key: getattr(each.value, each.value.WhichOneof("value")) for each in span.attributes}


@asynccontextmanager
async def receiver() -> AsyncIterator[Receiver]:
    """One that listens on a free port."""
    server, one = grpc.aio.server(), Receiver()
    trace_service_pb2_grpc.add_TraceServiceServicer_to_server(one, server)
    one.endpoint = f"http://127.0.0.1:{server.add_insecure_port('127.0.0.1:0')}"
    await server.start()
    try:
        yield one
    finally:
        await server.stop(None)
