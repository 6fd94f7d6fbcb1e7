"""Figures with their targets: what a benchmark prints, stores in `loadtest/results/` and reports.

One JSON file per benchmark, {name, command, machine, figures, detail}. `report.py` makes the tables
of them, so every figure there names the command and the machine that it came from.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from loadtest.machine import describe_machine

__all__ = ["RESULTS", "Figure", "ResultFile", "show"]

RESULTS = Path(__file__).resolve().parent / "results"


@dataclass(frozen=True, slots=True)
class Figure:
    """One measured number."""

    what: str
    setting: str
    """Model, resolution, steps, threads, streams: what the number depends on."""
    value: float
    unit: str
    target: float | None = None
    at_most: bool = False
    """Whether the target is an upper bound; else it is a lower one."""

    @property
    def met(self) -> bool | None:
        """Whether the target is reached; None without one. A value that is not a number reaches none."""
        if self.target is None:
            return None
        return self.value <= self.target if self.at_most else self.value >= self.target

    @property
    def value_text(self) -> str:
        if math.isnan(self.value):
            return "none"
        if 0 < abs(self.value) < 0.1:
            return f"{self.value:.2g} {self.unit}".rstrip()
        return f"{self.value:.{2 if abs(self.value) < 100 else 0}f} {self.unit}".rstrip()

    @property
    def target_text(self) -> str:
        if self.target is None:
            return ""
        return f"{'≤' if self.at_most else '≥'} {self.target:g} {self.unit}".rstrip()

    @property
    def met_text(self) -> str:
        return {None: "", True: "met", False: "missed"}[self.met]


@dataclass(frozen=True)
class ResultFile:
    """What one benchmark found."""

    name: str
    command: str
    """The command line that measures it again."""
    machine: Mapping[str, Any]
    figures: Sequence[Figure]
    problems: Sequence[str]
    """Why the figures should not be believed."""
    detail: Mapping[str, Any]

    @classmethod
    def of(
        cls,
        name: str,
        command: str,
        figures: Sequence[Figure],
        detail: Mapping[str, Any],
        problems: Sequence[str] = (),
    ) -> ResultFile:
        """A result measured just now on this machine."""
        return cls(name, command, describe_machine(), figures, problems, detail)

    def write(self, folder: Path = RESULTS) -> Path:
        """Write `<folder>/<name>.json`, replacing an earlier one."""
        folder.mkdir(parents=True, exist_ok=True)
        path = folder / f"{self.name}.json"
        content = {
            "name": self.name,
            "command": self.command,
            "machine": self.machine,
            "figures": [_storable(figure) for figure in self.figures],
            "problems": list(self.problems),
            "detail": self.detail,
        }
        path.write_text(json.dumps(content, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
        return path

    @classmethod
    def read(cls, path: Path) -> ResultFile:
        """Undo `write`. ValueError naming the file if it is not one."""
        try:
            content = json.loads(path.read_text(encoding="utf-8"))
            figures = [
                Figure(**{**entry, "value": math.nan if entry["value"] is None else entry["value"]})
                for entry in content["figures"]
            ]
            return cls(
                content["name"],
                content["command"],
                content["machine"],
                figures,
                content["problems"],
                content["detail"],
            )
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise ValueError(f"{path} is not a result of a benchmark: {error!r}") from None


def show(result: ResultFile, path: Path | None, console: Console | None = None) -> None:
    """Print the figures, the problems and where the JSON is."""
    console = console or Console()
    table = Table(title=f"{result.name}: {result.command}", title_justify="left", box=None, pad_edge=False)
    for column, justify in (("figure", "left"), ("setting", "left"), ("value", "right"), ("target", "right")):
        table.add_column(column, justify="right" if justify == "right" else "left")
    table.add_column("")
    for figure in result.figures:
        table.add_row(figure.what, figure.setting, figure.value_text, figure.target_text, figure.met_text)
    console.print(table)
    for problem in result.problems:
        console.print(f"problem: {problem}", style="bold red", markup=False)
    machine = result.machine
    console.print(
        f"{machine['cpu']}, {machine['cores']} cores, load {machine['load_average']}, {machine['date']}",
        markup=False,
    )
    if path is not None:
        console.print(f"written: {path}", markup=False, soft_wrap=True)


def _storable(figure: Figure) -> dict[str, Any]:
    content = asdict(figure)
    if math.isnan(figure.value):
        content["value"] = None  # JSON has no NaN.
    return content
