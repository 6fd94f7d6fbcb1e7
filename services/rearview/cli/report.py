"""What a translation took: frames, drops, frames per second, and latency by stage."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console
from rich.table import Table

from rearview.cli.words import counted
from rearview.client import Dropped, Opened, Translated
from rearview.client.targets import whole_file

__all__ = ["Report", "percentiles"]

PERCENTILES = (50, 95, 99)


@dataclass
class Report:
    """Filled while answers come. Seconds inside, milliseconds where it is shown."""

    translated: int = 0
    dropped: Counter[str] = field(default_factory=Counter)
    started_s: float = 0.0
    """The clock of `record`'s `now`, when the session was opened."""
    first_answer_s: float | None = None
    last_answer_s: float = 0.0
    is_lossless: bool = False
    """Frames were kept waiting on purpose, so that the service never ran dry."""
    num_connections: int = 1
    num_written: int = 0
    """Pictures in the output: a dropped frame repeats the one before it."""
    output: str = ""
    """Where they are; empty if nowhere. After an error not where they were to be."""
    unreached: tuple[str, ...] = ()
    """Moments of changes that came after the last frame."""
    session: Opened | None = None
    service_ready_s: float | None = None
    """From start to READY of a service started for this; None if it ran already."""
    _stages: dict[str, list[float]] = field(default_factory=dict)

    def record(self, answer: Translated | Dropped, now: float) -> None:
        """Count one answer."""
        self.first_answer_s = now if self.first_answer_s is None else self.first_answer_s
        self.last_answer_s = now
        if isinstance(answer, Dropped):
            self.dropped[answer.reason.name.lower()] += 1
            return
        self.translated += 1
        timings = answer.timings
        self._add("end to end", answer.round_trip_s)
        self._add("server", timings.total_s)
        self._add("admission", timings.admission_s)
        self._add("codec", timings.codec_s)
        for span in timings.spans:
            self._add(f"{span.span} queue", span.queue_s)
            self._add(f"{span.span} compute", span.compute_s)

    @property
    def frames(self) -> int:
        """Answers in all."""
        return self.translated + self.dropped.total()

    @property
    def elapsed_s(self) -> float:
        """From opening to the last answer."""
        return max(0.0, self.last_answer_s - self.started_s)

    @property
    def fps(self) -> float:
        """Translated pictures per second."""
        return self.translated / self.elapsed_s if self.elapsed_s > 0 else 0.0

    def latency_ms(self) -> dict[str, dict[str, float]]:
        """Stage to percentiles."""
        return {stage: percentiles(values) for stage, values in self._stages.items()}

    def as_dict(self) -> dict[str, Any]:
        """For `--report` and `--json`."""
        session = self.session
        first_s = None if self.first_answer_s is None else round(self.first_answer_s - self.started_s, 4)
        return {
            "frames": self.frames,
            "translated": self.translated,
            "dropped": dict(self.dropped),
            "elapsed_s": round(self.elapsed_s, 4),
            "fps": round(self.fps, 3),
            "first_frame_s": first_s,
            "latency_ms": self.latency_ms(),
            "lossless": self.is_lossless,
            "output": self.output or None,
            "pictures": self.num_written,
            "connections": self.num_connections,
            "service_ready_s": self.service_ready_s,
            "model": session.model if session else None,
            "method": session.method.name.lower() if session and session.method else None,
            "width": session.width if session else None,
            "height": session.height if session else None,
        }

    def write(self, path: Path) -> None:
        """Write it as JSON. Raises OSError."""
        text = json.dumps(self.as_dict(), indent=2) + "\n"
        whole_file(path, lambda beside: beside.write_text(text, encoding="utf-8"))

    def show(self, console: Console) -> None:
        """Print it for people."""
        drops = ", ".join(f"{count} dropped ({reason})" for reason, count in self.dropped.items())
        summary = f"{counted(self.frames, 'frame')} in {self.elapsed_s:.1f} s, {self.fps:.1f} FPS"
        console.print(f"{summary}{'; ' + drops if drops else ''}", highlight=False)
        table = Table("latency, ms", *(f"p{p}" for p in PERCENTILES), box=None, pad_edge=False)
        for column in table.columns[1:]:
            column.justify = "right"
        for stage, values in self.latency_ms().items():
            table.add_row(stage, *(f"{value:.1f}" for value in values.values()))
        if not self._stages:
            return
        console.print(table)
        if self.is_lossless:
            console.print("(as fast as it goes: end to end and admission include the frames kept waiting)")

    def _add(self, stage: str, value_s: float) -> None:
        self._stages.setdefault(stage, []).append(value_s)


def percentiles(values_s: Sequence[float] | Iterable[float]) -> dict[str, float]:
    """p50, p95 and p99 in milliseconds."""
    points = np.percentile(np.fromiter(values_s, float) * 1e3, PERCENTILES)
    return {f"p{p}": round(float(value), 3) for p, value in zip(PERCENTILES, points, strict=True)}
