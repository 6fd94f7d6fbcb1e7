"""From a failed gRPC call to a `rearview.errors` exception, and whether its session may still be there.

The reason comes from google.rpc.ErrorInfo in the status details, the wait from RetryInfo. A failure
without ErrorInfo did not come from the service but from the way to it: that is `Unreachable`.
"""

from __future__ import annotations

import grpc
from google.rpc import error_details_pb2
from grpc_status import rpc_status

from rearview.client.losses import Loss, NotSpoken, Unreachable
from rearview.errors import (
    DOMAIN,
    STATUS_OF_REASON,
    Fault,
    InvalidRequest,
    NotFound,
    RearviewError,
    Reason,
    Refused,
    StreamEnded,
)

__all__ = ["error_of", "loss_of", "no_answer"]

_KIND_OF_STATUS: dict[str, type[RearviewError]] = {
    "UNAUTHENTICATED": InvalidRequest,
    "PERMISSION_DENIED": InvalidRequest,
    "INVALID_ARGUMENT": InvalidRequest,
    "FAILED_PRECONDITION": InvalidRequest,
    "RESOURCE_EXHAUSTED": Refused,
    "UNAVAILABLE": Refused,
    "NOT_FOUND": NotFound,
    "DEADLINE_EXCEEDED": StreamEnded,
    "ABORTED": StreamEnded,
    "CANCELLED": StreamEnded,
    "INTERNAL": Fault,
}

_SIGNS = (
    ("Connection refused", "nobody listens there (`rearview up` starts a service)"),
    ("DNS resolution failed", "there is no host of this name"),
    ("errors resolving", "there is no host of this name"),
    ("WRONG_VERSION_NUMBER", "it does not speak TLS: leave --tls out"),
    ("CERTIFICATE_VERIFY_FAILED", "its certificate is not of an authority that is known here (--tls-ca)"),
    ("Hostname Verification Check failed", "its certificate is for another name (--tls-name)"),
    ("Ssl handshake failed", "the TLS handshake failed: does it speak TLS, and does it want a certificate?"),
    ("Socket closed", "it has hung up (if it wants TLS: --tls)"),
)
"""Of gRPC's words for a failed connection, the first that is there, and ours."""

_TRANSIENT_CODES = {
    grpc.StatusCode.UNAVAILABLE,
    grpc.StatusCode.INTERNAL,
    grpc.StatusCode.CANCELLED,
    grpc.StatusCode.UNKNOWN,
}

_TRANSIENT_REASONS = {
    Reason.REPLICA_LOST,
    Reason.DRAINING,
    Reason.DIRECTORY_UNAVAILABLE,
    Reason.INTERNAL,
}


def error_of(failure: grpc.aio.AioRpcError, address: str) -> RearviewError:
    """The exception for `failure`; its text is the server's, which is written for clients."""
    info, retry_after_s = _details(failure)
    text = failure.details() or failure.code().name
    if info is not None and info.domain == DOMAIN:
        reason = Reason.__members__.get(info.reason.removeprefix("ERROR_REASON_"), Reason.INTERNAL)
        kind = _KIND_OF_STATUS[STATUS_OF_REASON[reason]]
        return kind(reason, text, retry_after_s=retry_after_s, metadata=dict(info.metadata))
    if failure.code() is grpc.StatusCode.UNIMPLEMENTED:
        return NotSpoken(f"{address} does not speak rearview.v1")
    if failure.code() in _TRANSIENT_CODES or failure.code() is grpc.StatusCode.DEADLINE_EXCEEDED:
        return Unreachable(f"no connection to {address}: {_plain(text)}", retry_after_s=retry_after_s)
    kind = _KIND_OF_STATUS.get(failure.code().name, Fault)
    return kind(Reason.INTERNAL, f"{failure.code().name}: {text}", retry_after_s=retry_after_s)


def _plain(text: str) -> str:
    """What gRPC says of a way that does not work, in words that help; its own if none are known."""
    return next((words for sign, words in _SIGNS if sign in text), text)


def loss_of(failure: grpc.aio.AioRpcError, address: str) -> Loss:
    """What a failed call means for its session."""
    error = error_of(failure, address)
    error.__cause__ = failure
    is_transient = failure.code() in _TRANSIENT_CODES and (
        isinstance(error, Unreachable) or error.reason in _TRANSIENT_REASONS
    )
    return Loss(error, is_transient)


def no_answer(address: str) -> Loss:
    """The loss of a connection on which the server has not answered in time."""
    return Loss(Unreachable(f"{address} does not answer"), is_transient=True)


def _details(failure: grpc.aio.AioRpcError) -> tuple[error_details_pb2.ErrorInfo | None, float | None]:
    try:
        status = rpc_status.from_call(failure)
    except ValueError:
        return None, None
    info, retry_after_s = None, None
    for detail in status.details if status is not None else ():
        if detail.Is(error_details_pb2.ErrorInfo.DESCRIPTOR):
            info = error_details_pb2.ErrorInfo()
            detail.Unpack(info)
        elif detail.Is(error_details_pb2.RetryInfo.DESCRIPTOR):
            retry = error_details_pb2.RetryInfo()
            detail.Unpack(retry)
            retry_after_s = retry.retry_delay.ToTimedelta().total_seconds()
    return info, retry_after_s
