"""Why a connection was lost. Knows nothing of gRPC: `faults` makes these from what a call says."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from rearview.errors import Fault, NotFound, RearviewError, Reason, Refused, StreamEnded

__all__ = ["Loss", "NotSpoken", "Unreachable", "not_resumed"]


class Unreachable(Refused):
    """Nothing that speaks `rearview.v1` answered, or the connection was lost and not found again."""

    def __init__(
        self,
        message: str,
        *,
        retry_after_s: float | None = None,
        metadata: Mapping[str, str] | None = None,
    ) -> None:
        super().__init__(Reason.UNREACHABLE, message, retry_after_s=retry_after_s, metadata=metadata)

    def __reduce__(self) -> tuple[object, ...]:
        return _rebuild, (type(self), self.message, self.retry_after_s, self.metadata)


class NotSpoken(Unreachable):
    """A server that does not know the method: none of `rearview.v1`, or one of a release before it."""


def _rebuild(
    kind: type[Unreachable], message: str, retry_after_s: float | None, metadata: Mapping[str, str]
) -> Unreachable:
    return kind(message, retry_after_s=retry_after_s, metadata=metadata)


@dataclass(frozen=True)
class Loss:
    """The end of a connection that was no regular end."""

    error: RearviewError
    """What the user is told if the session ends of it."""
    is_transient: bool
    """Whether the session may still be there, so that resuming is worth a try."""

    @property
    def is_elsewhere(self) -> bool:
        """Whether another process of the service is more likely to help than the one that was asked."""
        elsewhere = (Reason.DRAINING, Reason.REPLICA_LOST)
        return self.is_transient and (isinstance(self.error, Unreachable) or self.error.reason in elsewhere)

    def is_final(self, *, is_open: bool, has_begun: bool) -> bool:
        """Whether another attempt cannot help a session that was opened, or was not.

        `has_begun`: the connection that was lost had said `opened`.
        """
        if is_open and not has_begun and self._is_of_attempt:
            return False
        # A fault of the server's while opening would only come again.
        return not self.is_transient or (not is_open and isinstance(self.error, Fault))

    @property
    def _is_of_attempt(self) -> bool:
        """Whether a resume was refused and not its session: no room yet, or another attempt came first."""
        return self.error.retry_after_s is not None or self.error.reason is Reason.TAKEN_OVER


def not_resumed(error: RearviewError, num_unanswered_frames: int) -> RearviewError:
    """The error of an open session that is not resumed after `error`; it says what stays unanswered."""
    text = f"the session is lost, {num_unanswered_frames} frames are unanswered: {error.message}"
    kind = NotFound if isinstance(error, NotFound) else StreamEnded
    lost = kind(error.reason, text, retry_after_s=error.retry_after_s, metadata=error.metadata)
    lost.__cause__ = error.__cause__
    return lost
