"""The result of a run: merged over streams and processes, as JSON and as a table. Pure.

A figure from a run whose answers broke the rules, or whose client was itself late, is not a measurement:
`problems` says so, and every table prints it.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, fields
from typing import Any

from rich.console import Group
from rich.table import Table
from rich.text import Text

from loadtest.histograms import Histograms
from loadtest.ledger import StreamResult

__all__ = ["MAX_CLIENT_LATENESS_MS", "LoadResult", "jain"]

MAX_CLIENT_LATENESS_MS = 5.0
"""If the client's own p99 lateness is more, its latencies say more about the client than the server."""
_SHOWN = ("p50", "p90", "p99", "p99.9", "max")


def jain(values: Sequence[float]) -> float:
    """Jain's fairness index: 1 when all are equal, 1/n when one has everything, NaN when all are zero."""
    squares = sum(value * value for value in values)
    return sum(values) ** 2 / (len(values) * squares) if squares else float("nan")


@dataclass
class LoadResult:
    """All streams of a run, from one or more generator processes."""

    streams: list[StreamResult] = field(default_factory=list)
    histograms: Histograms = field(default_factory=Histograms)
    server_cpu_s: float | None = None
    """CPU seconds of the processes that were watched, while the load ran."""

    @classmethod
    def merge(cls, parts: Iterable[LoadResult]) -> LoadResult:
        """One result of several processes' parts. CPU is the sum of the parts that measured it."""
        merged = cls()
        for part in parts:
            merged.streams.extend(part.streams)
            merged.histograms.add(part.histograms)
            if part.server_cpu_s is not None:
                merged.server_cpu_s = (merged.server_cpu_s or 0.0) + part.server_cpu_s
        merged.streams.sort(key=lambda stream: stream.stream)
        return merged

    @property
    def due(self) -> int:
        """Frames that were due; each is translated, dropped, unsent, cut or missing."""
        return sum(stream.due for stream in self.streams)

    @property
    def translated(self) -> int:
        """Pictures that came back."""
        return sum(stream.translated for stream in self.streams)

    @property
    def dropped(self) -> Counter[str]:
        """Frames that the server dropped, by reason."""
        return sum((stream.dropped for stream in self.streams), Counter[str]())

    @property
    def unsent(self) -> Counter[str]:
        """Frames that were due and not sent, by reason."""
        return sum((stream.unsent for stream in self.streams), Counter[str]())

    @property
    def violations(self) -> Counter[str]:
        """Broken rules, by kind."""
        return sum((stream.violations for stream in self.streams), Counter[str]())

    @property
    def ends(self) -> Counter[str]:
        """How streams ended, by status."""
        return Counter(stream.end for stream in self.streams)

    @property
    def fps_per_stream(self) -> list[float]:
        """Pictures per second of each stream."""
        return [stream.fps for stream in self.streams]

    @property
    def fairness(self) -> float:
        """Jain's index over the streams' FPS."""
        return jain(self.fps_per_stream)

    @property
    def cpu_ms_per_frame(self) -> float | None:
        """Server CPU per picture, milliseconds; None if no process was watched or no picture came."""
        if self.server_cpu_s is None or not self.translated:
            return None
        return 1e3 * self.server_cpu_s / self.translated

    @property
    def problems(self) -> list[str]:
        """Why these figures should not be believed; empty if they may be."""
        problems = [f"{count} x {kind}" for kind, count in sorted(self.violations.items())]
        problems += [f"stream ended with {end}" for end in sorted(self.ends) if end != "OK"]
        lateness_ms = self.histograms.percentile_ms("client_lateness", 99)
        if lateness_ms > MAX_CLIENT_LATENESS_MS:
            problems.append(f"client lateness p99 {lateness_ms:.1f} ms > {MAX_CLIENT_LATENESS_MS:g} ms")
        if not self.translated:
            problems.append("no picture came back")
        return problems

    def summary(self) -> dict[str, Any]:
        """The figures, for JSON; milliseconds and frames per second."""
        fps = self.fps_per_stream or [0.0]
        return {
            "streams": len(self.streams),
            "fps_per_stream": {
                "min": round(min(fps), 3),
                "mean": round(sum(fps) / len(fps), 3),
                "max": round(max(fps), 3),
            },
            "fps_total": round(sum(fps), 3),
            "fairness_jain": _rounded(self.fairness),
            "frames": {
                "due": self.due,
                "sent": sum(stream.sent for stream in self.streams),
                "translated": self.translated,
                "dropped": dict(self.dropped),
                "unsent": dict(self.unsent),
                "cut": sum(stream.cut for stream in self.streams),
            },
            "ms": {name: self.histograms.summary_ms(name) for name in self.histograms.names()},
            "server_cpu_ms_per_frame": _rounded(self.cpu_ms_per_frame),
            "ends": dict(self.ends),
            "violations": dict(self.violations),
            "examples": [example for stream in self.streams for example in stream.examples][:10],
            "problems": self.problems,
        }

    def to_json(self) -> dict[str, Any]:
        """Everything, so that `from_json` of several files can be merged."""
        return {
            "summary": self.summary(),
            "streams": [_stream_json(stream) for stream in self.streams],
            "histograms": self.histograms.encode(),
            "server_cpu_s": self.server_cpu_s,
        }

    @classmethod
    def from_json(cls, content: Mapping[str, Any]) -> LoadResult:
        """Undo `to_json`. KeyError or TypeError if the content is not one."""
        streams = []
        for entry in content["streams"]:
            known = {key: value for key, value in entry.items() if key != "fps"}
            for name in ("dropped", "unsent", "violations"):
                known[name] = Counter(known[name])
            streams.append(StreamResult(**known))
        return cls(streams, Histograms.decode(content["histograms"]), content["server_cpu_s"])

    def render(self) -> Group:
        """For a terminal."""
        return Group(self._durations(), *self._lines())

    def _durations(self) -> Table:
        table = Table(title="milliseconds", title_justify="left", box=None, pad_edge=False)
        table.add_column("")
        for name in (*_SHOWN, "count"):
            table.add_column(name, justify="right")
        for name in sorted(self.histograms.names(), key=lambda name: (name.startswith("server/"), name)):
            summary = self.histograms.summary_ms(name)
            table.add_row(name, *(f"{summary[key]:.2f}" for key in _SHOWN), str(summary["count"]))
        return table

    def _lines(self) -> list[Text]:
        fps = self.fps_per_stream or [0.0]
        lines = [
            f"{len(self.streams)} streams, FPS per stream: min {min(fps):.2f},"
            f" mean {sum(fps) / len(fps):.2f}, max {max(fps):.2f}; Jain's fairness {self.fairness:.4f}",
            f"{self.due} frames due: {self.translated} translated, dropped {_counts(self.dropped)},"
            f" not sent {_counts(self.unsent)}, cut {sum(stream.cut for stream in self.streams)}",
        ]
        if self.cpu_ms_per_frame is not None:
            lines.append(f"server CPU per picture: {self.cpu_ms_per_frame:.2f} ms")
        texts = [Text(line) for line in lines]
        return texts + [Text(f"problem: {problem}", style="bold red") for problem in self.problems]


def _stream_json(stream: StreamResult) -> dict[str, Any]:
    # Not `asdict`: it rebuilds a Counter from its items, and so counts the pairs.
    return {item.name: getattr(stream, item.name) for item in fields(stream)} | {"fps": round(stream.fps, 3)}


def _counts(counts: Mapping[str, int]) -> str:
    return ", ".join(f"{name} {count}" for name, count in sorted(counts.items())) or "0"


def _rounded(value: float | None) -> float | None:
    return None if value is None or value != value else round(value, 4)
