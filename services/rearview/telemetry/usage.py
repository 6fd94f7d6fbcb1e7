"""What tenants use, appended to a file as lines of JSON.

A frame counts when its answer will not be asked for again: the client has it, or the session has ended here.
So an ingress that takes a session over begins where the one before can have counted nothing, and no frame
counts twice. Lines are written and synced by a thread of the caller's, every interval; a crash loses what was
counted since. What could not be written is written again under the same ids.
"""

from __future__ import annotations

import os
import uuid
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path

from rearview.contract.events import Event, FrameUsed
from rearview.contract.usage import UsageRecord

__all__ = ["UsageListener"]


@dataclass(slots=True)
class _Tally:
    """One session's frames since the last record."""

    tenant: str
    model: str
    from_place: int
    frames: Counter[str] = field(default_factory=Counter)
    pixel_steps: int = 0
    device_s: float = 0.0


class UsageListener:
    """A sink of events that keeps account. Events and `due` belong to one thread, `write` to any."""

    def __init__(self, folder: Path, ingress_id: str, now: Callable[[], datetime] | None = None) -> None:
        """Raises OSError for a folder that cannot be written to."""
        folder.mkdir(parents=True, exist_ok=True)
        self._folder, self._now = folder, now or (lambda: datetime.now(UTC))
        self._ingress_id = "".join(each if each.isalnum() else "-" for each in ingress_id)
        self._run = uuid.uuid4().hex[:8]
        """Tells its records from those of a process before of the same name."""
        self._tallies: dict[str, _Tally] = {}
        """By session."""
        self._number = 0
        self._unwritten: list[UsageRecord] = []
        self._file_of(self._now()).touch()

    def __call__(self, event: Event) -> None:
        """Count one frame."""
        if not isinstance(event, FrameUsed):
            return
        tally = self._tallies.get(event.session_id)
        if tally is None:
            tally = self._tallies[event.session_id] = _Tally(event.tenant, event.model, event.place)
        tally.frames[event.outcome] += 1
        tally.pixel_steps += event.pixel_steps
        tally.device_s += event.device_s

    def due(self) -> list[UsageRecord]:
        """What is to be written now, what could not be before included."""
        time = self._now().isoformat(timespec="milliseconds")
        tallies, self._tallies = self._tallies, {}
        for session_id, tally in tallies.items():
            self._number += 1
            record = UsageRecord(
                f"{self._ingress_id}/{self._run}/{self._number}",
                time,
                tally.tenant,
                session_id,
                tally.model,
                tally.from_place,
                tally.from_place + tally.frames.total(),
                dict(tally.frames),
                tally.pixel_steps,
                round(tally.device_s, 6),
            )
            self._unwritten.append(record)
        return list(self._unwritten)

    def write(self, records: list[UsageRecord]) -> None:
        """Append and sync. Raises OSError; whether anything was written is then not known."""
        if not records:
            return
        # In front, since an append before may have been cut in the middle of a line.
        lines = "".join(f"\n{record.to_json()}" for record in records) + "\n"
        file = os.open(self._file_of(self._now()), os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o640)
        try:
            content = memoryview(lines.encode())
            while content:
                content = content[os.write(file, content) :]
            os.fsync(file)
        finally:
            os.close(file)

    def written(self, records: list[UsageRecord]) -> None:
        """They are in the file for good."""
        ids = {record.id for record in records}
        self._unwritten = [record for record in self._unwritten if record.id not in ids]

    def _file_of(self, now: datetime) -> Path:
        return self._folder / f"usage-{now:%Y-%m-%d}-{self._ingress_id}.jsonl"
