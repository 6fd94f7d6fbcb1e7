"""What tenants have used: records that add up, and what they say together.

A record is about the frames of one session between two places, all of them answered. Records of a session
follow each other without overlap, whichever ingresses have fed it; what is missing between two of them was
lost with an ingress, and its number of frames is known.
"""

from __future__ import annotations

import json
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Mapping
from dataclasses import asdict, dataclass, field

__all__ = ["Sum", "UsageRecord", "read_record", "summed"]

VERSION = 1


@dataclass(frozen=True, slots=True)
class UsageRecord:
    """Some frames of one session."""

    id: str
    """No other record has it: of two that do, one is a copy."""
    time: str
    """When it was made: RFC 3339, UTC."""
    tenant: str
    session: str
    model: str
    from_place: int
    """The first of its frames, by number among those received, from 0."""
    to_place: int
    """The one after the last."""
    frames: Mapping[str, int]
    """By outcome: `translated`, or the reason of a drop. Together `to_place - from_place`."""
    pixel_steps: int
    """Of frames that have passed all their denoising steps: width times height times steps, summed."""
    device_s: float
    """Their shares of forwards, seconds."""

    def to_json(self) -> str:
        """One line, without its end."""
        return json.dumps({"v": VERSION, **asdict(self)}, separators=(",", ":"))


def read_record(line: str) -> UsageRecord | None:
    """Undo `to_json`. None for what is no whole record: the end of a line that a crash has cut."""
    try:
        content = json.loads(line)
        known = {name: content[name] for name in UsageRecord.__slots__}
    except (ValueError, KeyError, TypeError):
        return None
    return UsageRecord(**known)


@dataclass(slots=True)
class Sum:
    """What some records say together."""

    sessions: set[str] = field(default_factory=set)
    frames: Counter[str] = field(default_factory=Counter)
    unrecorded: int = 0
    """Frames that were answered and are in no record."""
    pixel_steps: int = 0
    device_s: float = 0.0


def summed(
    records: Iterable[UsageRecord], key: Callable[[UsageRecord], tuple[str, str]]
) -> Mapping[tuple[str, str], Sum]:
    """Sums by `key`, a tenant and an interval. What is missing before a record counts where that does."""
    sums: defaultdict[tuple[str, str], Sum] = defaultdict(Sum)
    ends: dict[str, int] = {}
    whole = {record.id: record for record in records}
    for record in sorted(whole.values(), key=lambda each: (each.session, each.from_place)):
        total = sums[key(record)]
        total.sessions.add(record.session)
        total.frames.update(record.frames)
        total.pixel_steps += record.pixel_steps
        total.device_s += record.device_s
        total.unrecorded += max(0, record.from_place - ends.get(record.session, 0))
        ends[record.session] = record.to_place
    return dict(sorted(sums.items()))
