"""Parts of one result file, each measured by itself: what ran, on what, and how busy the machine was.

Measuring a part anew replaces it and leaves the others. A journal lets a long campaign go on where it was
stopped: what it has of this commit is not run again.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from loadtest.figures import Figure, ResultFile
from loadtest.machine import describe_machine

__all__ = ["NAME", "Journal", "Load", "Section", "merged", "sections_of"]

NAME = "reliability"


class Load:
    """The machine's load average while something runs, lowest and highest."""

    def __init__(self) -> None:
        self.low = self.high = round(os.getloadavg()[0], 1)

    def look(self) -> float:
        """Take note of it now; returns it."""
        now = round(os.getloadavg()[0], 1)
        self.low, self.high = min(self.low, now), max(self.high, now)
        return now


@dataclass(frozen=True)
class Section:
    """What one campaign found."""

    name: str
    command: str
    """That measures it again."""
    figures: Sequence[Figure]
    detail: Mapping[str, Any] = field(default_factory=dict)
    load: tuple[float, float] = (0.0, 0.0)
    """Load average of the machine, lowest and highest, what was measured included."""
    machine: Mapping[str, Any] = field(default_factory=describe_machine)
    problems: Sequence[str] = ()


def sections_of(result: ResultFile) -> dict[str, Section]:
    """The parts of a result file, by name."""
    return {
        name: Section(
            name,
            stored["command"],
            [Figure(**figure) for figure in stored["figures"]],
            stored["detail"],
            tuple(stored["load"]),
            stored["machine"],
            stored["problems"],
        )
        for name, stored in result.detail["sections"].items()
    }


def merged(former: ResultFile | None, sections: Sequence[Section], order: Sequence[str]) -> ResultFile:
    """`former` with these parts in it, in `order`. Its own machine is that of the part measured last."""
    known = {} if former is None else sections_of(former)
    known |= {section.name: section for section in sections}
    parts = [known[name] for name in order if name in known]
    figures = [figure for part in parts for figure in part.figures]
    problems = [f"{part.name}: {problem}" for part in parts for problem in part.problems]
    detail = {"sections": {part.name: _stored(part) for part in parts}}
    machine = max((part.machine for part in parts), key=lambda machine: str(machine["date"]))
    return ResultFile(NAME, "make chaos", machine, figures, problems, detail)


def _stored(section: Section) -> dict[str, Any]:
    content = {name: getattr(section, name) for name in ("command", "detail", "machine", "problems")}
    return {**content, "figures": [asdict(figure) for figure in section.figures], "load": list(section.load)}


class Journal:
    """What a campaign has found so far, by what was run; one JSON line each."""

    def __init__(self, path: Path | None, commit: str) -> None:
        """`path`: read and appended to; None: nothing is kept."""
        self._path, self._commit = path, commit
        self._known: dict[str, Any] = {}
        if path is not None and path.exists():
            for line in path.read_text(encoding="utf-8").splitlines():
                entry = json.loads(line)
                if entry["commit"] == commit:
                    self._known[entry["what"]] = entry["found"]

    def get(self, what: str) -> Any:
        """What came of it; None: it was not run."""
        return self._known.get(what)

    def put(self, what: str, found: Any) -> None:
        """It was run."""
        self._known[what] = found
        if self._path is not None:
            self._path.parent.mkdir(parents=True, exist_ok=True)
            with self._path.open("a", encoding="utf-8") as file:
                file.write(json.dumps({"commit": self._commit, "what": what, "found": found}) + "\n")

    def done(self) -> None:
        """The campaign is over: the next one begins anew."""
        if self._path is not None:
            self._path.unlink(missing_ok=True)
