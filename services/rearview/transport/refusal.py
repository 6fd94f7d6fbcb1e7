"""An error as the reply that carries it over a link, and back."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from rearview.errors import Fault, NotFound, RearviewError, Reason, Refused

__all__ = ["refusal", "refused"]


def refusal(error: RearviewError) -> dict[str, Any]:
    """The reply to a request that has failed."""
    return {
        "reason": error.reason.name,
        "message": error.message,
        "retry_after_s": error.retry_after_s,
        "metadata": error.metadata,
    }


def refused(reply: Mapping[str, Any]) -> RearviewError:
    """Undo `refusal`, from who was asked to who has asked."""
    reason, metadata = Reason[reply["reason"]], reply["metadata"]
    if reason is Reason.INTERNAL:
        return Fault(metadata=metadata)
    if reason is Reason.SESSION_UNKNOWN:
        return NotFound(reason, reply["message"], metadata=metadata)
    return Refused(reason, reply["message"], retry_after_s=reply["retry_after_s"], metadata=metadata)
