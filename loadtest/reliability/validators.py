"""V1 to V10: what must hold of every run, read off its histories. Pure.

Each validator takes a `Run` and returns what is wrong in it. An announced end is no violation of V1, silence
is; a past that began anew is none of V8 if a notice said so, a notice that says more than is true is.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass

from rearview.contract.watermark import Link, digest
from rearview.errors import STATUS_OF_REASON, Reason

from loadtest.reliability.continuity import Break, Input, Past, breaks
from loadtest.reliability.history import Event, Run, Snapshot, What
from loadtest.reliability.plan import Expected, Manners, StreamPlan, payload

__all__ = ["VALIDATORS", "Limits", "Violation", "validate"]

OUTCOMES = (What.RESULT, What.DROPPED)
LAST = (What.ENDED, What.LEFT)
LEAKS = re.compile(r"Traceback|File '|\.py\b|0x[0-9a-f]{6,}|\bActor\b|/tmp/|/usr/|\bray\.|\basyncio\b")
FAULTY = frozenset(
    {
        *(Reason.REPLICA_LOST, Reason.DRAINING, Reason.TAKEN_OVER, Reason.SESSION_UNKNOWN, Reason.IDLE),
        *(Reason.DIRECTORY_UNAVAILABLE, Reason.UNREACHABLE),
    }
)
"""With which a stream may end that was hurt."""
REFUSALS = frozenset({Reason.NO_CAPACITY, Reason.TENANT_STREAMS_EXHAUSTED, Reason.TENANT_RATE_EXHAUSTED})
MAY_TAKE_ORDINALS = frozenset({"LATE", "FAULT"})


@dataclass(frozen=True, slots=True)
class Limits:
    """What counts as too late or too much. Seconds; generous, since machines are shared."""

    refusal_s: float = 0.1
    """From an open to its refusal (P6)."""
    stale_s: float = 0.25
    """Over the budget of a frame, which is the way to the client and its own lateness."""
    token_s: float = 5.0
    """From the end of a token to that of its stream."""
    end_s: float = 5.0
    """From the last answer to the end of a stream that was half-closed."""
    more_tasks: int = 2
    more_fds: int = 2
    hurt_s: float = 30.0
    """After a fault, for so long a stream may be late or end with its reason."""


@dataclass(frozen=True, slots=True)
class Violation:
    """What is wrong."""

    validator: str
    stream: str
    text: str

    def __str__(self) -> str:
        return f"{self.validator} {self.stream}: {self.text}"


Found = Iterator[tuple[str, str]]
"""Streams, and what is wrong with them."""


def validate(run: Run, limits: Limits | None = None) -> list[Violation]:
    """All that is wrong with a run."""
    given = limits or Limits()
    return [
        Violation(name, stream, text)
        for name, validator in VALIDATORS.items()
        for stream, text in validator(run, given)
    ]


def v1_conservation(run: Run, limits: Limits) -> Found:
    """Every frame has an outcome, or its stream an end: never silence."""
    for key, events in _lasting(run):
        ended = _find(events, What.ENDED)
        if not any(event.what in (*LAST, What.REFUSED) for event in events):
            yield key, "it was never ended"
        if any(event.what is What.LEFT for event in events):
            continue
        sent = {event.index for event in events if event.what is What.SENT}
        missing = sorted(sent - {event.index for event in events if event.what in OUTCOMES})
        if ended is not None and ended.data["status"] == "OK" and missing:
            yield key, f"it ended OK, and {len(missing)} frames have no outcome: {missing[:5]}"
        finished, hurt = _find(events, What.FINISHED), _was_hurt(run, events, limits)
        if finished and ended and not missing and not hurt:
            if ended.data["status"] != "OK":
                yield key, f"all is answered, and it ended with {ended.data['status']}"
            after = max(event.time_s for event in events if event.what in (*OUTCOMES, What.FINISHED))
            if ended.time_s - after > limits.end_s:
                yield key, f"all is answered, and it ended {ended.time_s - after:.1f} s later"


def v2_order(run: Run, limits: Limits) -> Found:
    """Outcomes come in the order of their frames."""
    for key, events in run.streams().items():
        before = -1
        for event in events:
            if event.what in OUTCOMES:
                if event.index < before:
                    yield key, f"frame {event.index} came after {before}"
                before = max(before, event.index)


def v3_uniqueness(run: Run, limits: Limits) -> Found:
    """No frame has two outcomes, also over connections and moves; none has one that was never sent."""
    for key, events in run.streams().items():
        # A client may read an answer before it has written down that the frame was sent.
        sent = {event.index for event in events if event.what is What.SENT}
        seen: set[int] = set()
        for event in events:
            if event.what in OUTCOMES:
                if event.index in seen:
                    yield key, f"frame {event.index} has a second outcome"
                if event.index not in sent:
                    yield key, f"frame {event.index} has an outcome and was never sent"
                seen.add(event.index)


def v4_isolation(run: Run, limits: Limits) -> Found:
    """A picture is of the stream's own session, frame and settings."""
    for key, events in run.streams().items():
        opened = _find(events, What.OPENED)
        sizes = {event.index: event.data["size"] for event in events if event.what is What.SENT}
        ordinal = -1
        for event in events:
            if event.what is not What.RESULT:
                continue
            if opened is None or event.data["session"] != opened.data["session"]:
                yield key, f"frame {event.index} is of another session"
            if event.index in sizes and event.data["content"] != _content(key, event.index, sizes):
                yield key, f"frame {event.index} is another picture"
            if event.data["ordinal"] <= ordinal:
                yield key, f"frame {event.index} has ordinal {event.data['ordinal']} after {ordinal}"
            ordinal = max(ordinal, event.data["ordinal"])
        wanted = _settings_by_index(events)
        for event in events:
            if event.what is What.RESULT and event.data["settings"] not in wanted(event.index):
                yield key, f"frame {event.index} was translated under other settings"


def v5_staleness(run: Run, limits: Limits) -> Found:
    """What comes is no older than its budget; without one, no older than after a fault it may be."""
    for key, plan, events in _planned(run):
        due = {event.index: event for event in events if event.what is What.SENT}
        has_budget = plan.policy.value == "deadline"
        allowed_s = plan.budget_s + limits.stale_s if has_budget else limits.hurt_s
        if plan.manners is Manners.DAWDLES or _was_hurt(run, events, limits):
            continue
        for event in events:
            if event.what is What.RESULT and event.index in due:
                age_s = event.time_s - due[event.index].time_s - event.data.get("lag_s", 0.0)
                if age_s > allowed_s:
                    yield key, f"frame {event.index} came after {age_s:.2f} s, {allowed_s:.2f} s are allowed"


def v6_admission(run: Run, limits: Limits) -> Found:
    """What is not served is refused at once, and told when to come again."""
    for key, events in run.streams().items():
        opened, refused = _find(events, What.OPEN), _find(events, What.REFUSED)
        if opened is None or refused is None:
            continue
        seconds = refused.time_s - opened.time_s - refused.data.get("lag_s", 0.0)
        if seconds > limits.refusal_s and not _was_hurt(run, events, limits):
            yield key, f"it was refused after {seconds:.2f} s"
        is_full = refused.data["status"] == "RESOURCE_EXHAUSTED"
        if is_full and refused.data.get("retry_after_s") is None:
            yield key, "it was refused, and not told when to come again"


def v7_release(run: Run, limits: Limits) -> Found:
    """Whatever the end, nothing is held after it."""
    base, end = run.base, run.end
    for replica, slots in end.slots.items():
        if slots > base.slots.get(replica, 0):
            yield replica, f"{slots} slots are held"
    if end.leases > base.leases:
        yield "directory", f"{end.leases} sessions are kept"
    for name, more in (("tasks", limits.more_tasks), ("fds", limits.more_fds)):
        before, after = getattr(base, name), getattr(end, name)
        for process in before.keys() & after.keys():
            if after[process] > before[process] + more:
                yield process, f"{after[process]} {name}, and {before[process]} before"


def v8_continuity(run: Run, limits: Limits) -> Found:
    """A session knows all its past, or a notice has said before that it does not."""
    for key, events in run.streams().items():
        opened = _find(events, What.OPENED)
        if opened is None:
            continue
        order = {event.index: place for place, event in enumerate(events) if event.what is What.RESULT}
        told = [
            (place, event.data["continuity"])
            for place, event in enumerate(events)
            if event.what is What.NOTICE and event.data.get("continuity")
        ]
        used = -1
        for index, found in _by_index(breaks(opened.data["session"], _inputs(key, events))).items():
            steps = ", ".join(f"step {each.step} knows {each.count} frames" for each in found)
            since = [(place, what) for place, what in told if used < place < order[index]]
            said = {what for _, what in since}
            used = max((place for place, _ in since), default=used)
            if any(each.past is Past.CORRUPT for each in found):
                yield key, f"frame {index} has a past that never was ({steps})"
            elif not said & {"reset", "approximate"}:
                what = "the notice said EXACT, and its past began anew" if said else "its past began anew"
                yield key, f"frame {index}: {what} ({steps})"


def v9_counters(run: Run, limits: Limits) -> Found:
    """What the service has counted is what clients have seen, or what they would have, had they not left."""
    if not run.end.is_whole or run.killed_clients:
        return
    counted = _counted(run.base, run.end)
    results, drops = run.count(What.RESULT), run.count(What.DROPPED)
    unanswered = run.count(What.SENT) - results - drops
    for name, seen in (("translated", results), ("dropped", drops)):
        if not seen <= counted.get(name, 0) <= seen + unanswered:
            yield (
                "metrics",
                f"{counted.get(name, 0)} frames {name}; clients saw {seen}, {unanswered} unanswered",
            )
    total = sum(counted.get(name, 0) for name in ("translated", "dropped"))
    if total > run.count(What.SENT):
        yield "metrics", f"{total} outcomes of {run.count(What.SENT)} frames"


def v10_statuses(run: Run, limits: Limits) -> Found:
    """Ends have a listed status and reason, and say nothing of the inside; a token ends when it ends."""
    for key, plan, events in _planned(run):
        for event in events:
            if event.what is What.BROKEN:
                yield key, event.data["text"]
            if event.what in (What.ENDED, What.REFUSED):
                yield from ((key, text) for text in _wrong_end(run, plan, events, event, limits))
        yield from ((key, text) for text in _wrong_token(plan, events, limits))


VALIDATORS: Mapping[str, Callable[[Run, Limits], Found]] = {
    "V1": v1_conservation,
    "V2": v2_order,
    "V3": v3_uniqueness,
    "V4": v4_isolation,
    "V5": v5_staleness,
    "V6": v6_admission,
    "V7": v7_release,
    "V8": v8_continuity,
    "V9": v9_counters,
    "V10": v10_statuses,
}
"""By name; the names are those of the published promises."""


def _wrong_end(
    run: Run, plan: StreamPlan, events: Sequence[Event], end: Event, limits: Limits
) -> Iterator[str]:
    status, text = end.data["status"], end.data.get("text", "")
    reason = Reason.__members__.get(end.data.get("reason") or "")
    if LEAKS.search(text):
        yield f"its end says {text[:80]!r}"
    if status != "OK" and reason is not None and STATUS_OF_REASON[reason] != status:
        yield f"it ended with {status}, and {reason.name} has {STATUS_OF_REASON[reason]}"
    if plan.expected is Expected.REFUSED:
        if end.what is not What.REFUSED or reason is not Reason.TOKEN_INVALID:
            yield f"its token is worth nothing, and it ended with {status}"
        return
    allowed = set(REFUSALS) if plan.expected is Expected.EITHER or run.faults else set()
    if _was_hurt(run, events, limits):
        allowed |= FAULTY
    if plan.token_until_s is not None:
        allowed |= {Reason.TOKEN_INVALID, Reason.TOKEN_EXPIRED, Reason.TOKEN_REVOKED}
    if any(event.what is What.LEFT for event in events):
        allowed.add(Reason.CLOSED)
    is_unreachable = status == "UNAVAILABLE" and reason is None and _was_hurt(run, events, limits)
    if status != "OK" and reason not in allowed and not is_unreachable:
        yield f"it ended with {status} {'' if reason is None else reason.name}: {text[:80]}"


def _wrong_token(plan: StreamPlan, events: Sequence[Event], limits: Limits) -> Iterator[str]:
    began = _find(events, What.OPENED)
    if plan.expected is Expected.REFUSED and began is not None:
        yield "it was opened with a token that is worth nothing"
    late = [
        event
        for event in events
        if event.what in OUTCOMES and event.data.get("token_age_s", 0.0) > limits.token_s
    ]
    if late:
        yield f"frame {late[0].index} was answered {late[0].data['token_age_s']:.1f} s after its token's end"


def _lasting(run: Run) -> Iterator[tuple[str, Sequence[Event]]]:
    """Streams whose client lived to write down their end."""
    for key, events in run.streams().items():
        if key not in run.killed_clients:
            yield key, events


def _planned(run: Run) -> Iterator[tuple[str, StreamPlan, Sequence[Event]]]:
    for key, events in run.streams().items():
        plan = run.plan.of(key)
        if plan is not None:
            yield key, plan, events


def _find(events: Sequence[Event], what: What) -> Event | None:
    return next((event for event in events if event.what is what), None)


def _was_hurt(run: Run, events: Sequence[Event], limits: Limits) -> bool:
    """Whether a fault fell into the stream's life, or not long before it."""
    begin, end = events[0].time_s, events[-1].time_s
    return any(
        fault.time_s <= end and begin <= (fault.until_s or fault.time_s) + limits.hurt_s
        for fault in run.faults
    )


def _content(key: str, index: int, sizes: Mapping[int, int]) -> str:
    return digest(payload(key, index, sizes[index])).hex()


def _settings_by_index(events: Sequence[Event]) -> Callable[[int], frozenset[int]]:
    """Digests of the settings that a frame may have been translated under: those in force at its place."""
    opened = _find(events, What.OPENED)
    changes = [(0, opened.data["settings"])] if opened is not None else []
    changes += [(event.index, event.data["settings"]) for event in events if event.what is What.APPLIED]
    places = {event.index: place for place, event in enumerate(e for e in events if e.what is What.SENT)}

    def wanted(index: int) -> frozenset[int]:
        place = places.get(index, 0)
        in_force = [settings for begin, settings in changes if begin <= place]
        return frozenset(in_force[-1:])

    return wanted


def _inputs(key: str, events: Sequence[Event]) -> list[Input]:
    """The frames of a stream, in the order of sending."""
    outcomes = {event.index: event for event in reversed(events) if event.what in OUTCOMES}
    wanted = _settings_by_index(events)
    found = []
    for event in events:
        if event.what is not What.SENT:
            continue
        outcome, content = outcomes.get(event.index), payload(key, event.index, event.data["size"])
        (settings,) = wanted(event.index) or (0,)
        if outcome is not None and outcome.what is What.RESULT:
            links = tuple(
                Link(step, count, bytes.fromhex(text)) for step, count, text in outcome.data["links"]
            )
            found.append(
                Input(event.index, content, outcome.data["settings"], outcome.data["ordinal"], links)
            )
            continue
        reason = "FAULT" if outcome is None else outcome.data["reason"]
        found.append(
            Input(
                event.index,
                content,
                settings,
                may_have_ordinal=reason in MAY_TAKE_ORDINALS,
                may_be_unseen=reason == "FAULT",
            )
        )
    return found


def _by_index(found: Sequence[Break]) -> dict[int, list[Break]]:
    by_index: dict[int, list[Break]] = {}
    for each in found:
        by_index.setdefault(each.index, []).append(each)
    return by_index


def _counted(base: Snapshot, end: Snapshot) -> dict[str, int]:
    return {name: count - base.frames.get(name, 0) for name, count in end.frames.items()}
