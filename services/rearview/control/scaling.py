"""How many replicas a span should have: a pure function of what is known, and of what was known before.

    base    what load at the target share and slots ask for: of sessions that are there or wait
    needed  one more, or a twentieth, while frames are too old though that says fine; and what will come
            before a replica that is ordered now is ready
    wanted  needed at once; fewer only if the most of the last `hold_s` was, and if the sessions fit in them
    target  no fewer than have a session, and their spares: what is to order
    none    of a span that nobody has used for `idle_s`, spares included

Each span is decided by its own load, so the one that binds is the one that grows. What is to come is seen by
`control/forecast.py`. What surprises: a replica that is not empty is not given up, so `Decision.wanted` may
be below `Decision.target`; the sessions then have to move together first.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from enum import Enum

from rearview.contract.scaling import Why
from rearview.control.forecast import NO_HISTORY, History, growth, seen
from rearview.control.placement import RETRY_AFTER_S

__all__ = ["START", "Decision", "Figures", "Phase", "ReplicaNow", "ScalingState", "SpanNow", "decide"]

ROUNDING = 1e-9
"""Demand may be so much over a whole number of replicas."""
LATE_STEP = 0.05
"""Of the replicas there are, how many more while frames are too old; one at least."""


class Phase(Enum):
    """What a replica does."""

    STARTING = "starting"
    """It is ordered, and takes no session yet."""
    SERVING = "serving"
    LEAVING = "leaving"
    """It takes no session any more, and is given up when those that it has are gone."""


@dataclass(frozen=True, slots=True)
class ReplicaNow:
    """One replica of the span."""

    share: float = 0.0
    """Of its time, what its sessions declare, 1.0 being all of it as measured. 0 where costs are unknown."""
    sessions: int = 0
    """All that hold a slot."""
    slots: int = 0
    """0: not known yet."""
    phase: Phase = Phase.SERVING
    has_reported: bool = True
    """False: `share`, `sessions` and `slots` say nothing."""


@dataclass(frozen=True, slots=True)
class SpanNow:
    """The span at one moment."""

    replicas: Sequence[ReplicaNow]
    arrivals: int = 0
    """Sessions that were asked for since the decision before, refused ones included."""
    refusals: int = 0
    """How many of them found no room in this span."""
    start_s: float = 0.0
    """How long the longest start of a replica took, as measured; of the time to capacity. 0: not known."""
    frame_age_s: float | None = None
    """95th percentile of the age of frames when they are answered. None: not known, or another span binds."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Figures:
    """What the operator wants, and what a new replica takes."""

    max_replicas: int
    min_replicas: int = 1
    """Of a span that is in use; 0 lets one that is idle go to none, by `idle_s`."""
    spares: int = 0
    """Of a span that is in use: so many more, which hold no session."""
    target_share: float = 0.7
    """Share of each replica's time that is to be given away."""
    max_share: float = 1.0
    """The most that placement gives away of one: sessions that are moved together have to fit in it."""
    sessions_per_replica: float | None = None
    """Sessions that a replica is to have at most. None: as many as its time and its slots allow."""
    slots: int | None = None
    """Of each replica. None: the least that one of them tells."""
    frame_age_slo_s: float | None = None
    """None: age does not count."""
    node_s: float = 0.0
    """From the order of a machine until it is there."""
    image_s: float = 0.0
    """From then until a replica begins to start. Weights and graphs follow: `SpanNow.start_s`."""
    window_s: float = 300.0
    """How far back growth is looked for."""
    hold_s: float = 60.0
    """How long fewer must be enough before any is given up."""
    idle_s: float = 600.0
    """How long nobody must have come before the last ones go, where `min_replicas` is 0."""
    retry_after_s: float = RETRY_AFTER_S
    """When those that were refused ask again: so they are counted once."""
    relearn_s: float = 1800.0
    """How long it takes until frames that were too old are forgotten."""


@dataclass(frozen=True, slots=True)
class ScalingState:
    """What is carried from decision to decision."""

    time_s: float = -math.inf
    """Of the decision before."""
    history: History = NO_HISTORY
    peaks: tuple[tuple[float, int], ...] = ()
    """When how many were needed: falling, the first being the most of the hold."""
    waiting: float = 0.0
    """Sessions that were refused and will ask again."""
    session_share: float = 0.0
    """What a session takes of a replica's time, on average; the last that was known."""
    more: int = 0
    """Replicas beyond what load and slots asked for, when frames were too old last."""
    more_s: float = -math.inf
    """When that was."""
    used_s: float = -math.inf
    """When the span was in use last."""
    current: int = 0
    """Replicas that there were, ordered ones included."""


START = ScalingState()


@dataclass(frozen=True, slots=True)
class Decision:
    """What follows."""

    target: int
    """Replicas to order: no fewer than have sessions."""
    wanted: int
    """Replicas to get to: below `target` while sessions have yet to move together."""
    why: Why
    """What holds `target` where it is."""


def decide(span: SpanNow, figures: Figures, state: ScalingState, now: float) -> tuple[Decision, ScalingState]:
    """How many replicas, and the state for the next decision. `now`: seconds of any clock; one that is set
    back stands.
    """
    now = max(now, state.time_s)
    current = _count(span, Phase.SERVING) + _count(span, Phase.STARTING)
    state = _noted(span, figures, state, current, now)
    base, why = _base(span, figures, state)
    state = _boosted(span, figures, state, base, now)
    needed, why = _needed(span, figures, state, base, why, now)
    state = replace(state, peaks=_peaks(state.peaks, needed, figures.hold_s, now))
    if figures.min_replicas == 0 and state.used_s < now - figures.idle_s:
        return Decision(0, 0, Why.IDLE), state
    wanted = max(needed, min(state.peaks[0][1], current))
    if wanted > needed:
        why = Why.HOLD
    if wanted < current and (kept := max(wanted, _packed(span, figures, state))) > wanted:
        wanted, why = min(kept, current), Why.SESSIONS
    if wanted < current and not all(each.has_reported for each in _serving(span)):
        wanted, why = current, Why.UNHEARD
    target = wanted
    if wanted < current and (busy := current - _surplus(span, figures)) > wanted:
        target, why = busy, Why.SESSIONS
    if target > figures.max_replicas:
        target, wanted, why = figures.max_replicas, min(wanted, figures.max_replicas), Why.MAXIMUM
    return Decision(target, wanted, why), state


def _noted(span: SpanNow, figures: Figures, state: ScalingState, current: int, now: float) -> ScalingState:
    """With what happened since the decision before."""
    is_first = state.time_s == -math.inf
    sessions, arrivals = _sessions(span), max(span.arrivals, span.refusals)
    share = sum(each.share for each in span.replicas)
    left = 0.0 if is_first else math.exp(-(now - state.time_s) / max(figures.retry_after_s, ROUNDING))
    waiting = state.waiting * left + span.refusals
    is_heard = all(each.has_reported for each in _serving(span))
    has_grown = current > state.current  # Whoever ordered it has a reason.
    return replace(
        state,
        time_s=now,
        history=seen(state.history, sessions + waiting, arrivals, figures.window_s, now),
        peaks=((now, current),) if is_first else state.peaks,
        waiting=waiting,
        session_share=share / sessions if sessions else state.session_share,
        used_s=now if sessions or arrivals or has_grown or not is_heard else state.used_s,
        current=current,
    )


def _base(span: SpanNow, figures: Figures, state: ScalingState) -> tuple[int, Why]:
    """Replicas for the sessions that are there, or wait."""
    waiting, share = round(state.waiting), sum(each.share for each in span.replicas)
    by_load, by_slots = _for(_sessions(span) + waiting, share + waiting * state.session_share, span, figures)
    least = max(figures.min_replicas, 1 + figures.spares)
    return max((least, Why.MINIMUM), (by_load, Why.LOAD), (by_slots, Why.SLOTS), key=lambda each: each[0])


def _boosted(span: SpanNow, figures: Figures, state: ScalingState, base: int, now: float) -> ScalingState:
    """With some more replicas, if frames are too old, the load says fine and none is on its way. Never more
    than double what the load asks for, and one: if that does not help, it is something else that is slow.
    """
    slo_s, age_s = figures.frame_age_slo_s, span.frame_age_s
    is_late = slo_s is not None and age_s is not None and age_s > slo_s
    is_coming = _count(span, Phase.STARTING) > 0 or now - state.more_s < _lead_s(span, figures)
    serving = _count(span, Phase.SERVING)
    more = min(base + 1, serving + max(1, math.ceil(LATE_STEP * serving)) - base)
    if not is_late or is_coming or more <= 0:
        return state
    return replace(state, more=max(_more(state, figures, now), more), more_s=now)


def _needed(
    span: SpanNow, figures: Figures, state: ScalingState, base: int, why: Why, now: float
) -> tuple[int, Why]:
    """Replicas for the sessions that will be there when one that is ordered now is ready."""
    more = _more(state, figures, now)
    coming = round(state.waiting) + growth(state.history, figures.window_s) * _lead_s(span, figures)
    share = sum(each.share for each in span.replicas) + coming * state.session_share
    ahead = max(_for(_sessions(span) + coming, share, span, figures)) + more
    reasons = ((base, why), (base + more, Why.AGE), (ahead, Why.AHEAD))
    needed, why = max(reasons, key=lambda each: each[0])
    return (figures.max_replicas, Why.MAXIMUM) if needed > figures.max_replicas else (needed, why)


def _for(sessions: float, share: float, span: SpanNow, figures: Figures) -> tuple[int, int]:
    """Replicas, spares included: by load, and by slots."""
    slots = _slots(span, figures)
    by_load = share / figures.target_share
    if figures.sessions_per_replica is not None:
        by_load = max(by_load, sessions / figures.sessions_per_replica)
    return _whole(by_load) + figures.spares, (_whole(sessions / slots) if slots else 0) + figures.spares


def _packed(span: SpanNow, figures: Figures, state: ScalingState) -> int:
    """The fewest replicas, spares included, that take all sessions after they have moved together: a session
    is not divided. As many as there are where nobody knows how many one of them takes.
    """
    slots = _slots(span, figures)
    each = math.inf if slots is None else float(slots)
    if state.session_share > ROUNDING:
        each = min(each, max(1.0, math.floor(figures.max_share / state.session_share + ROUNDING)))
    if math.isinf(each):
        return len(span.replicas)
    return _whole(_sessions(span) / each) + figures.spares


def _surplus(span: SpanNow, figures: Figures) -> int:
    """Replicas that nobody misses: without a session, and no spare of sessions that are there."""
    empty = sum(not each.sessions for each in span.replicas if each.phase is not Phase.LEAVING)
    return max(0, empty - figures.spares)


def _peaks(
    peaks: tuple[tuple[float, int], ...], needed: int, hold_s: float, now: float
) -> tuple[tuple[float, int], ...]:
    """What is yet to be held, with what is needed now: an earlier one counts while it is more."""
    kept = [(at, count) for at, count in peaks if count > needed and now - at < hold_s]
    return (*kept, (now, needed))


def _more(state: ScalingState, figures: Figures, now: float) -> int:
    """What is left of the replicas that old frames asked for."""
    left = 1.0 - (now - state.more_s) / figures.relearn_s
    return math.ceil(state.more * left) if left > 0 else 0


def _lead_s(span: SpanNow, figures: Figures) -> float:
    """The time to capacity."""
    return figures.node_s + figures.image_s + span.start_s


def _slots(span: SpanNow, figures: Figures) -> int | None:
    told = [each.slots for each in _serving(span) if each.slots]
    return figures.slots or min(told, default=None)


def _sessions(span: SpanNow) -> int:
    return sum(each.sessions for each in span.replicas)


def _serving(span: SpanNow) -> list[ReplicaNow]:
    return [each for each in span.replicas if each.phase is Phase.SERVING]


def _count(span: SpanNow, phase: Phase) -> int:
    return sum(each.phase is phase for each in span.replicas)


def _whole(replicas: float) -> int:
    return math.ceil(replicas - ROUNDING)
