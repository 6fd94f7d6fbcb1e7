"""When a stream counts as idle. Pure: facts and `now` in, seconds out.

A stream is not idle while frames that it has sent are being translated, nor while it sends anything, credit
included. But where all its frames wait for a warm-up only frames help, so credit does not count then.
"""

from __future__ import annotations

from dataclasses import dataclass

from rearview.errors import Reason, StreamEnded

__all__ = ["Activity", "idle_error", "idle_in"]


@dataclass(frozen=True, slots=True)
class Activity:
    """When something last went over a stream, either way. Monotonic seconds."""

    last_s: float
    fed_s: float
    """The last thing but credit."""

    @classmethod
    def at(cls, now: float) -> Activity:
        """Something that feeds the session, or an answer."""
        return cls(now, now)

    def credit_at(self, now: float) -> Activity:
        """Something that does not feed it."""
        return Activity(now, self.fed_s)


def idle_in(activity: Activity, now: float, idle_s: float, *, owes: bool, starves: bool) -> float:
    """Seconds until the stream is to be looked at again; 0 or less: it is idle.

    `owes`: whether the session owes answers; `starves`: whether they wait for frames that have not come.
    """
    if owes and not starves:
        return idle_s
    return (activity.fed_s if starves else activity.last_s) + idle_s - now


def idle_error(idle_s: float, warm_up_missing: int) -> StreamEnded:
    """What an idle stream ends with; `warm_up_missing`: frames that the answers which it is owed wait for."""
    text = f"nothing was received for {idle_s:g} s"
    if not warm_up_missing:
        return StreamEnded(Reason.IDLE, text)
    return StreamEnded(
        Reason.IDLE,
        f"{text}, and a warm-up waits for {warm_up_missing} more frames: send them before the first answer, "
        "or open the session with instant_start",
        metadata={"warm_up_missing": str(warm_up_missing)},
    )
