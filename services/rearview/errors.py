"""The exceptions of the whole project, and the one table from reason to gRPC status.

    RearviewError                  has a `reason`; its text may be shown to a client
    ├── InvalidRequest             the caller's input is wrong; sending it again will not help
    ├── Refused                    no capacity, quota or time; carries `retry_after_s`
    ├── NotFound                   no such session, model or replica
    ├── StreamEnded                the stream was ended by the server or another stream
    ├── Fault                      our own fault; the text is for the log, never for a client
    └── ConfigError                a configuration that cannot work, with the names to change

The names of `Reason` are those of `rearview.v1.ErrorReason` without the prefix, but for one that clients
make themselves (a test compares them), so this module needs neither gRPC nor the stubs.
"""

from __future__ import annotations

from collections.abc import Mapping
from enum import Enum

__all__ = [
    "DOMAIN",
    "STATUS_OF_REASON",
    "ConfigError",
    "DropReason",
    "Fault",
    "InvalidRequest",
    "NotFound",
    "RearviewError",
    "Reason",
    "Refused",
    "StreamEnded",
    "out_of_range",
    "own_words",
]

DOMAIN = "rearview.v1"
"""`domain` of every google.rpc.ErrorInfo that the service sends."""


class Reason(Enum):
    """Why a call was refused or ended (`rearview.v1.ErrorReason`)."""

    UNREACHABLE = 0
    """Made by the client, never sent: nothing that speaks `rearview.v1` answers at the address."""
    TOKEN_INVALID = 1
    MESSAGE_EMPTY = 2
    NOT_OPEN = 3
    ALREADY_OPEN = 4
    SESSION_UNKNOWN = 5
    RESUME_TOKEN_INVALID = 6
    PROMPT_EMPTY = 7
    PROMPT_TOO_LONG = 8
    SETTING_OUT_OF_RANGE = 9
    RESOLUTION_UNSUPPORTED = 10
    MODEL_UNKNOWN = 11
    NO_CAPACITY = 12
    TENANT_STREAMS_EXHAUSTED = 13
    CREDIT_EXCEEDED = 14
    TOO_MANY_BAD_FRAMES = 15
    IDLE = 16
    REPLICA_LOST = 17
    DRAINING = 18
    TAKEN_OVER = 19
    INTERNAL = 20
    CLOSED = 21
    METHOD_UNSUPPORTED = 22
    MESSAGE_INVALID = 23
    MESSAGE_TOO_LARGE = 24
    TOKEN_EXPIRED = 25
    TOKEN_REVOKED = 26
    CALLS_EXHAUSTED = 27
    TENANT_RATE_EXHAUSTED = 28
    DIRECTORY_UNAVAILABLE = 29
    REFERENCE_UNSUPPORTED = 33
    REFERENCE_INVALID = 34
    REFERENCE_TOO_LARGE = 35


class DropReason(Enum):
    """Why a frame was not translated (`rearview.v1.DropReason`)."""

    SUPERSEDED = 1
    LATE = 2
    UNCHANGED = 3
    FAULT = 4
    IMAGE_EMPTY = 5
    IMAGE_INVALID = 6
    IMAGE_NOT_BASELINE = 7
    IMAGE_SIZE_MISMATCH = 8
    IMAGE_TOO_LARGE = 9
    INDEX_NOT_INCREASING = 10
    RATE_LIMITED = 11
    CONTROLS_TOO_MANY = 12
    CONTROL_UNKNOWN = 13
    CONTROL_INVALID = 14
    CONTROL_SIZE_MISMATCH = 15


STATUS_OF_REASON: Mapping[Reason, str] = {
    Reason.UNREACHABLE: "UNAVAILABLE",
    Reason.TOKEN_INVALID: "UNAUTHENTICATED",
    Reason.MESSAGE_EMPTY: "INVALID_ARGUMENT",
    Reason.NOT_OPEN: "FAILED_PRECONDITION",
    Reason.ALREADY_OPEN: "FAILED_PRECONDITION",
    Reason.SESSION_UNKNOWN: "NOT_FOUND",
    Reason.RESUME_TOKEN_INVALID: "PERMISSION_DENIED",
    Reason.PROMPT_EMPTY: "INVALID_ARGUMENT",
    Reason.PROMPT_TOO_LONG: "INVALID_ARGUMENT",
    Reason.SETTING_OUT_OF_RANGE: "INVALID_ARGUMENT",
    Reason.RESOLUTION_UNSUPPORTED: "INVALID_ARGUMENT",
    Reason.MODEL_UNKNOWN: "INVALID_ARGUMENT",
    Reason.NO_CAPACITY: "RESOURCE_EXHAUSTED",
    Reason.TENANT_STREAMS_EXHAUSTED: "RESOURCE_EXHAUSTED",
    Reason.CREDIT_EXCEEDED: "RESOURCE_EXHAUSTED",
    Reason.TOO_MANY_BAD_FRAMES: "INVALID_ARGUMENT",
    Reason.IDLE: "DEADLINE_EXCEEDED",
    Reason.REPLICA_LOST: "UNAVAILABLE",
    Reason.DRAINING: "UNAVAILABLE",
    Reason.TAKEN_OVER: "ABORTED",
    Reason.INTERNAL: "INTERNAL",
    Reason.CLOSED: "CANCELLED",
    Reason.METHOD_UNSUPPORTED: "INVALID_ARGUMENT",
    Reason.MESSAGE_INVALID: "INVALID_ARGUMENT",
    Reason.MESSAGE_TOO_LARGE: "RESOURCE_EXHAUSTED",
    Reason.TOKEN_EXPIRED: "UNAUTHENTICATED",
    Reason.TOKEN_REVOKED: "UNAUTHENTICATED",
    Reason.CALLS_EXHAUSTED: "RESOURCE_EXHAUSTED",
    Reason.TENANT_RATE_EXHAUSTED: "RESOURCE_EXHAUSTED",
    Reason.DIRECTORY_UNAVAILABLE: "UNAVAILABLE",
    Reason.REFERENCE_UNSUPPORTED: "INVALID_ARGUMENT",
    Reason.REFERENCE_INVALID: "INVALID_ARGUMENT",
    Reason.REFERENCE_TOO_LARGE: "INVALID_ARGUMENT",
}
"""The canonical gRPC status code (by name) that goes with each reason."""


class RearviewError(Exception):
    """An error with a reason that a client can act on.

    `message` is safe to send: it names fields and limits, never frames, prompts, paths or code.
    `metadata` goes into ErrorInfo (for instance `field`).
    """

    def __init__(
        self,
        reason: Reason,
        message: str,
        *,
        retry_after_s: float | None = None,
        metadata: Mapping[str, str] | None = None,
    ) -> None:
        super().__init__(message)
        self.reason = reason
        self.message = message
        self.retry_after_s = retry_after_s
        self.metadata = dict(metadata or {})

    @property
    def status(self) -> str:
        """Name of the canonical gRPC status code."""
        return STATUS_OF_REASON[self.reason]

    def __reduce__(self) -> tuple[object, ...]:
        return _rebuild, (type(self), self.reason, self.message, self.retry_after_s, self.metadata)


def _rebuild(
    kind: type[RearviewError],
    reason: Reason,
    message: str,
    retry_after_s: float | None,
    metadata: dict[str, str],
) -> RearviewError:
    """Undo `__reduce__`: these errors travel between processes with all that they carry."""
    return kind(reason, message, retry_after_s=retry_after_s, metadata=metadata)


class InvalidRequest(RearviewError):
    """The caller's input is wrong."""


def out_of_range(field: str, message: str) -> InvalidRequest:
    """A setting that cannot be served; `field` is its path in the request."""
    return InvalidRequest(Reason.SETTING_OUT_OF_RANGE, message, metadata={"field": field})


class Refused(RearviewError):
    """No capacity or quota now; `retry_after_s` says when to try again."""


class NotFound(RearviewError):
    """There is no such session."""


class StreamEnded(RearviewError):
    """The server, or another stream, has ended this stream."""


class Fault(RearviewError):
    """A fault of ours. The message is for the log."""

    def __init__(
        self,
        reason: Reason = Reason.INTERNAL,
        message: str = "internal fault",
        *,
        retry_after_s: float | None = None,
        metadata: Mapping[str, str] | None = None,
    ) -> None:
        super().__init__(reason, message, retry_after_s=retry_after_s, metadata=metadata)


class ConfigError(ValueError):
    """A configuration that cannot work; the text names the options to change."""


def own_words(message: str) -> str:
    """What a check of ours said, without the words that pydantic puts before it."""
    return message.removeprefix("Value error, ")
