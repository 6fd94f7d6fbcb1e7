"""What became of the streams that a fault hurt: how soon each had a good picture again, or why not. Pure.

A stream is hurt if the target of the fault was part of its lane, or was its ingress. It is back with the
first picture of a frame that was sent after the fault, in the same session; who has nothing more to send, or
leaves, asks for none.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from enum import Enum
from typing import Any

from loadtest.reliability.history import Event, Fault, Run, What

__all__ = ["Came", "Recovery", "recovered", "recoveries"]


class Came(Enum):
    """What came of a hurt stream."""

    BACK = "back"
    ENDED = "ended"
    """With a status and a reason."""
    NEVER = "never"
    """No picture, and no end that says why."""


@dataclass(frozen=True, slots=True)
class Recovery:
    """One stream that was hurt by one fault."""

    stream: str
    came: Came
    seconds: float | None = None
    """From the fault to the first good picture of a frame that was sent after it."""


def recoveries(run: Run) -> list[Recovery]:
    """Those of all hurt streams, fault after fault."""
    by_session = {
        event.data["session"]: (key, events)
        for key, events in run.streams().items()
        for event in events
        if event.what is What.OPENED and key not in run.killed_clients
    }
    return [
        found
        for fault in run.faults
        for session in fault.sessions
        if session in by_session
        for found in _of(fault, *by_session[session])
    ]


def _of(fault: Fault, key: str, events: Sequence[Event]) -> Iterator[Recovery]:
    over = (What.FINISHED, What.LEFT, What.ENDED)
    if any(event.what in over and event.time_s <= fault.time_s for event in events):
        return
    later = [event for event in events if event.time_s > fault.time_s]
    sent = {event.index for event in later if event.what is What.SENT}
    back = next((event for event in later if event.what is What.RESULT and event.index in sent), None)
    end = next((event for event in later if event.what in (What.LEFT, What.ENDED)), None)
    is_done = not sent and any(event.what is What.FINISHED for event in later)
    if back is not None:
        yield Recovery(key, Came.BACK, back.time_s - fault.time_s)
    elif is_done or (end is not None and end.what is What.LEFT):
        return
    elif end is not None and end.data.get("reason") is not None:
        yield Recovery(key, Came.ENDED)
    else:
        yield Recovery(key, Came.NEVER)


def recovered(found: Sequence[Recovery]) -> dict[str, Any]:
    """For the report."""
    return {
        "hurt": len(found),
        "recovery_s": [round(each.seconds, 3) for each in found if each.seconds is not None],
        "never": [each.stream for each in found if each.came is Came.NEVER],
        "hurt_ended": sum(each.came is Came.ENDED for each in found),
    }
