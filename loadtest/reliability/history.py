"""What clients wrote down, one line per event, and what a run is made of. Append-only.

A client that is killed leaves what it had written: every line is written at once, and a torn last line is
skipped. Times are seconds on the machine's monotonic clock, the same in all its processes.
"""

from __future__ import annotations

import json
import time
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from enum import Enum
from pathlib import Path
from typing import Any, TextIO

from loadtest.reliability.plan import Plan

__all__ = ["Event", "Fault", "Log", "Run", "Snapshot", "What", "read_history"]


class What(Enum):
    """What has happened, seen by a client."""

    OPEN = "open"
    """It asks for a session."""
    OPENED = "opened"
    """`session`, `settings`."""
    REFUSED = "refused"
    """There is no session: `status`, `reason`, `text`, `retry_after_s`."""
    SENT = "sent"
    """A frame: `size`, and since when it was `due`."""
    RESULT = "result"
    """A frame's picture: `session`, `ordinal`, `settings`, `links`, `content` (digest of what was echoed)."""
    DROPPED = "dropped"
    """A frame's `reason`."""
    CONTROL = "control"
    """It asks for other settings; `index`: the frame before which."""
    APPLIED = "applied"
    """`settings` are in force; `index`: how many frames came before."""
    NOTICE = "notice"
    """`kind` and `continuity`; `resumed` if the client itself has found its session again."""
    CUT = "cut"
    """The connection was lost: `status`; what follows is a notice, or an end."""
    FINISHED = "finished"
    """Nothing more will be sent."""
    LEFT = "left"
    """It ends the stream itself, in the middle."""
    ENDED = "ended"
    """`status`, `reason`, `text`; `OK` after a half-close."""
    BROKEN = "broken"
    """The client's own code failed, or an answer made no sense: `text`."""


@dataclass(frozen=True, slots=True)
class Event:
    """One line of a history."""

    what: What
    stream: str
    time_s: float
    index: int = -1
    data: Mapping[str, Any] = field(default_factory=dict)

    def to_line(self) -> str:
        """As JSON."""
        head = {"what": self.what.value, "stream": self.stream, "time_s": round(self.time_s, 6)}
        return json.dumps({**head, "index": self.index, **self.data}, separators=(",", ":"))

    @classmethod
    def of_line(cls, line: str) -> Event:
        """Undo `to_line`. Raises ValueError or KeyError."""
        content = json.loads(line)
        what, stream = What(content.pop("what")), content.pop("stream")
        return cls(what, stream, content.pop("time_s"), content.pop("index"), content)


class Log:
    """Where a client writes its history."""

    def __init__(self, file: TextIO | None = None) -> None:
        """`file`: opened for appending, line by line; None: kept in memory alone."""
        self._file = file
        self.events: list[Event] = []
        """Only of a log without a file."""

    def __call__(self, what: What, stream: str, index: int = -1, **data: Any) -> None:
        """Write an event down, now."""
        event = Event(what, stream, time.monotonic(), index, data)
        if self._file is None:
            self.events.append(event)
        else:
            self._file.write(event.to_line() + "\n")


def read_history(paths: Iterable[Path]) -> tuple[Event, ...]:
    """The events of several clients, in the order of their times. A torn last line is skipped."""
    events = []
    for path in paths:
        lines = path.read_text(encoding="utf-8").split("\n")
        events += [Event.of_line(line) for line in lines[:-1]]
    return tuple(sorted(events, key=lambda event: event.time_s))


@dataclass(frozen=True, slots=True)
class Fault:
    """What was done to the service or a client."""

    kind: str
    target: str
    time_s: float
    until_s: float | None = None
    """When it was over; None: at once."""
    sessions: tuple[str, ...] = ()
    """Those that it hurt: whose lane or ingress the target was part of."""


@dataclass(frozen=True, slots=True)
class Snapshot:
    """What the service holds, and what it has counted."""

    slots: Mapping[str, int] = field(default_factory=dict)
    """Sessions by replica."""
    leases: int = 0
    """Entries of the directory."""
    tasks: Mapping[str, int] = field(default_factory=dict)
    """asyncio tasks by process."""
    fds: Mapping[str, int] = field(default_factory=dict)
    """File descriptors by process."""
    frames: Mapping[str, int] = field(default_factory=dict)
    """`rearview_frames_total` by outcome, and drops by reason as `dropped/REASON`, of all ingresses."""
    is_whole: bool = True
    """Whether no process that counted frames was lost."""


@dataclass(frozen=True, slots=True)
class Run:
    """All that is known of one run."""

    plan: Plan
    events: Sequence[Event]
    faults: Sequence[Fault] = ()
    base: Snapshot = field(default_factory=Snapshot)
    """Before any traffic."""
    end: Snapshot = field(default_factory=Snapshot)
    """After it, when everything should have been given back."""
    killed_clients: frozenset[str] = frozenset()
    """Streams whose client was killed or left frozen: their histories just stop."""

    def streams(self) -> Mapping[str, Sequence[Event]]:
        """Events by stream."""
        found: dict[str, list[Event]] = {}
        for event in self.events:
            found.setdefault(event.stream, []).append(event)
        return found

    def count(self, *whats: What) -> int:
        """How many events there are of these kinds."""
        counts = Counter(event.what for event in self.events)
        return sum(counts[what] for what in whats)

    def as_json(self) -> dict[str, Any]:
        """All but the plan and the events, to keep beside the history."""
        return {
            "seed": self.plan.seed,
            "faults": [asdict(fault) for fault in self.faults],
            "base": asdict(self.base),
            "end": asdict(self.end),
            "killed_clients": sorted(self.killed_clients),
        }
