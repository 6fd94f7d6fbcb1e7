"""Errors to gRPC status with details: ErrorInfo always, RetryInfo where trying again helps."""

from __future__ import annotations

from typing import Any

import grpc
from google.protobuf import any_pb2, duration_pb2
from google.rpc import code_pb2, error_details_pb2, status_pb2
from grpc_status import rpc_status

from rearview.errors import DOMAIN, RearviewError

__all__ = ["abort", "to_status"]


def to_status(error: RearviewError) -> status_pb2.Status:
    """The google.rpc.Status of an error."""
    info = error_details_pb2.ErrorInfo(reason=error.reason.name, domain=DOMAIN, metadata=error.metadata)
    details = [info]
    if error.retry_after_s is not None:
        delay = duration_pb2.Duration()
        delay.FromMilliseconds(round(error.retry_after_s * 1000))
        details.append(error_details_pb2.RetryInfo(retry_delay=delay))
    packed = [any_pb2.Any() for _ in details]
    for holder, detail in zip(packed, details, strict=True):
        holder.Pack(detail)
    return status_pb2.Status(code=code_pb2.Code.Value(error.status), message=error.message, details=packed)


async def abort(context: grpc.aio.ServicerContext[Any, Any], error: RearviewError) -> None:
    """End the call with the error's status. Raises what gRPC ends a handler with."""
    await context.abort_with_status(rpc_status.to_status(to_status(error)))
