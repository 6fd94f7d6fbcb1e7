"""What an evaluation found: the table of methods, and its forms for people, programs and documents."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from rearview_lab.evaluation.explained import GOAL, Explained
from rearview_lab.evaluation.metrics import Drift, Scores, mean, mean_scores
from rearview_lab.evaluation.parts import Floor, Run, StepFigures
from rearview_lab.evaluation.runner import PER_FRAME

__all__ = ["Classified", "Evaluation", "Line", "Tabular"]

DIFFERENCE_LIMIT, GRADIENT_LIMIT, EXCESS_GOAL = 0.02, 0.05, 0.70
"""A method counts as better only if it keeps the look: ratios to per-frame of the same noise and style."""
MIN_EXCESS = 1e-3
"""A per-frame excess below this is no base for a ratio."""
ALL_STYLES = "all"


@dataclass(frozen=True)
class Line:
    """One method, noise rule and style; the mean over clips."""

    method: str
    noise: str
    style: str
    """ALL_STYLES: the mean over styles."""
    scores: Scores
    excess: float
    """Warp error above that of the autoencoder alone. Below zero for a look with less contrast."""
    excess_ratio: float | None
    """To per-frame of the same noise and style, as the other ratios. None: no base to compare with."""
    difference_ratio: float | None
    gradient_ratio: float | None

    @property
    def keeps_look(self) -> bool | None:
        """Whether difference and gradient stay within their limits: a blurred picture does not count."""
        if self.difference_ratio is None or self.gradient_ratio is None:
            return None
        gaps = (self.difference_ratio - 1, self.gradient_ratio - 1)
        return abs(gaps[0]) <= DIFFERENCE_LIMIT and abs(gaps[1]) <= GRADIENT_LIMIT

    @property
    def reaches_goal(self) -> bool | None:
        """Whether flicker falls as far as asked while the look is kept."""
        if self.excess_ratio is None or self.keeps_look is None:
            return None
        return self.keeps_look and self.excess_ratio <= EXCESS_GOAL


@dataclass(frozen=True)
class Classified:
    """Share of translated held-out frames whose style is named right."""

    accuracy: Mapping[str, float]
    confusions: Mapping[str, Mapping[str, int]]
    on_filters: float
    """The same on the filters' own pictures of those frames: what the classifier can do at best."""
    on_rebuilt: float
    """The same after the autoencoder alone: what a perfect denoiser would reach."""

    @property
    def mean(self) -> float:
        return mean(self.accuracy.values())


@dataclass(frozen=True)
class Tabular:
    """Heading, column names and rows of text."""

    title: str
    columns: Sequence[str]
    rows: Sequence[Sequence[str]]


@dataclass
class Evaluation:
    """Filled part by part; a part that did not run is empty."""

    setting: dict[str, Any]
    """What was run: checkpoint, size, frames, …"""
    floors: list[Floor] = field(default_factory=list)
    runs: list[Run] = field(default_factory=list)
    autoencoder_db: dict[str, float] = field(default_factory=dict)
    steps: dict[str, dict[int, StepFigures]] = field(default_factory=dict)
    classified: Classified | None = None
    drift: dict[str, dict[str, Drift]] = field(default_factory=dict)
    """Method to style."""
    explained: dict[str, Explained] = field(default_factory=dict)
    """By style: how much of it a plain filter could do."""

    def lines(self) -> list[Line]:
        """The table, by noise rule and style; per style the methods beside each other."""
        styles = list(dict.fromkeys(run.style for run in self.runs))
        keys = dict.fromkeys((run.noise, run.method) for run in self.runs)
        found = [
            self._line(noise, method, style)
            for style in [*styles, *([ALL_STYLES] if len(styles) > 1 else [])]
            for noise, method in keys
        ]
        return sorted(found, key=lambda line: line.noise)

    def as_dict(self) -> dict[str, Any]:
        """For JSON; what is not a number is null."""
        lines = [
            asdict(line) | {"keeps_look": line.keeps_look, "reaches_goal": line.reaches_goal}
            for line in self.lines()
        ]
        content = {
            "setting": self.setting,
            "floors": [asdict(floor) for floor in self.floors],
            "table": lines,
            "runs": [asdict(run) for run in self.runs],
            "autoencoder_db": self.autoencoder_db,
            "steps": {
                style: {str(n): asdict(figures) for n, figures in numbers.items()}
                for style, numbers in self.steps.items()
            },
            "classifier": None
            if self.classified is None
            else asdict(self.classified) | {"mean": self.classified.mean},
            "explained": {
                style: asdict(one) | {"reaches_goal": one.reaches_goal}
                for style, one in self.explained.items()
            },
            "drift": {
                method: {
                    style: asdict(one) | {"changes": one.changes, "worst": one.worst, "holds": one.holds}
                    for style, one in styles.items()
                }
                for method, styles in self.drift.items()
            },
        }
        finite: dict[str, Any] = _finite(content)
        return finite

    def write_json(self, path: Path) -> None:
        """Raises OSError."""
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(self.as_dict(), indent=2, allow_nan=False) + "\n", encoding="utf-8")

    def markdown(self) -> str:
        lines = [", ".join(f"{name} {_plain(value)}" for name, value in self.setting.items()), ""]
        for table in self.tables():
            lines += [f"**{table.title}**", "", _markdown_row(table.columns)]
            lines += ["|" + "---|" * len(table.columns), *map(_markdown_row, table.rows), ""]
        return "\n".join(lines)

    def write_markdown(self, path: Path) -> None:
        """Raises OSError."""
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(self.markdown(), encoding="utf-8")

    def show(self, console: Console) -> None:
        """Print every table."""
        for table in self.tables():
            shown = Table(*table.columns, title=table.title, title_justify="left", box=None, pad_edge=False)
            for row in table.rows:
                shown.add_row(*row)
            console.print(shown)
            console.print()

    def tables(self) -> Iterator[Tabular]:
        """Those whose part was run."""
        if self.floors:
            yield self._floor_table()
        if self.runs:
            yield self._method_table()
        if self.autoencoder_db:
            rows = [*self.autoencoder_db.items(), ("mean", mean(self.autoencoder_db.values()))]
            yield Tabular(
                "Autoencoder on held-out photographs", ("photograph", "PSNR, dB"), _texts(rows, ".1f")
            )
        if self.steps:
            yield self._step_table()
        if self.classified is not None:
            yield self._classifier_table(self.classified)
        if self.explained:
            yield self._explained_table()
        if self.drift:
            yield self._drift_table()

    def _line(self, noise: str, method: str, style: str) -> Line:
        scores, excess = self._scores(noise, method, style), self._excess(noise, method, style)
        if method == PER_FRAME.name or not any(run.method == PER_FRAME.name for run in self.runs):
            return Line(method, noise, style, scores, excess, None, None, None)
        base = self._scores(noise, PER_FRAME.name, style)
        return Line(
            method,
            noise,
            style,
            scores,
            excess,
            _ratio(excess, self._excess(noise, PER_FRAME.name, style), MIN_EXCESS),
            _ratio(scores.input_difference, base.input_difference),
            _ratio(scores.gradient, base.gradient),
        )

    def _matching(self, noise: str, method: str, style: str) -> list[Run]:
        return [
            run
            for run in self.runs
            if run.noise == noise and run.method == method and style in (run.style, ALL_STYLES)
        ]

    def _scores(self, noise: str, method: str, style: str) -> Scores:
        return mean_scores([run.scores for run in self._matching(noise, method, style)])

    def _excess(self, noise: str, method: str, style: str) -> float:
        floors = {floor.clip: floor.autoencoder.warp_error for floor in self.floors}
        return mean(run.scores.warp_error - floors[run.clip] for run in self._matching(noise, method, style))

    def _floor_table(self) -> Tabular:
        rows = [
            (floor.clip, floor.source.warp_error, floor.autoencoder.warp_error, floor.source.gradient)
            for floor in self.floors
        ]
        columns = ("clip", "source", "autoencoder", "gradient of the source")
        return Tabular("Floors: warp error of what is not translated", columns, _texts(rows, ".4f"))

    def _method_table(self) -> Tabular:
        columns = [
            "noise", "style", "method", "warp error", "excess", "ratio", "difference", "ratio", "gradient",
            "ratio", "consistency", "look kept", "goal",
        ]  # fmt: skip
        judged = ("clip_consistency", "text_alignment", "depth_error")
        lines = self.lines()
        shown = [name for name in judged if any(getattr(line.scores, name) is not None for line in lines)]
        rows = [
            [
                line.noise, line.style, line.method,
                _text(line.scores.warp_error, ".4f"),
                _text(line.excess, ".4f"), _text(line.excess_ratio, ".2f"),
                _text(line.scores.input_difference, ".4f"), _text(line.difference_ratio, ".3f"),
                _text(line.scores.gradient, ".4f"), _text(line.gradient_ratio, ".3f"),
                _text(line.scores.consistency, ".4f"), _yes(line.keeps_look), _yes(line.reaches_goal),
                *(_text(getattr(line.scores, name), ".4f") for name in shown),
            ]
            for line in lines
        ]  # fmt: skip
        title = "Methods: mean over clips; ratios to per frame under the same noise"
        return Tabular(title, [*columns, *(name.replace("_", " ") for name in shown)], rows)

    def _step_table(self) -> Tabular:
        numbers = sorted({number for figures in self.steps.values() for number in figures})
        names = ("dB to filter", "difference", "gradient")
        columns = ["style", *(f"{name}, S={number}" for name in names for number in numbers)]
        rows = [
            [style]
            + [_text(figures[n].psnr_db, ".1f") for n in numbers]
            + [_text(figures[n].input_difference, ".4f") for n in numbers]
            + [_text(figures[n].gradient, ".4f") for n in numbers]
            for style, figures in self.steps.items()
        ]
        return Tabular("Steps, on held-out photographs", columns, rows)

    def _classifier_table(self, found: Classified) -> Tabular:
        rows = [
            (
                style,
                f"{share:.0%}",
                ", ".join(f"{name} ({n})" for name, n in found.confusions.get(style, {}).items()),
            )
            for style, share in found.accuracy.items()
        ]
        best = f"filters' own pictures {found.on_filters:.0%}, through the autoencoder {found.on_rebuilt:.0%}"
        rows.append(("mean", f"{found.mean:.0%}", best))
        return Tabular("Style named from the picture alone", ("style", "right", "taken for"), rows)

    def _explained_table(self) -> Tabular:
        rows = [
            (style, _text(one.model, ".0%"), _text(one.teacher, ".0%"), _yes(one.reaches_goal))
            for style, one in self.explained.items()
        ]
        reached = [one.reaches_goal for one in self.explained.values()]
        rows.append(("within the goal", f"{reached.count(True)} styles", "", ""))
        columns = ("style", "the model's pictures", "the training filter's own", f"at most {GOAL:.0%}")
        return Tabular("Variance of the change that a colour map and a 5x5 filter explain", columns, rows)

    def _drift_table(self) -> Tabular:
        rows = [
            (
                method,
                style,
                _text(one.early.warp_error, ".4f"),
                _text(one.late.warp_error, ".4f"),
                f"{one.worst:+.2%}",
                _yes(one.holds),
            )
            for method, styles in self.drift.items()
            for style, one in styles.items()
        ]
        columns = ("method", "style", "warp error early", "late", "largest change", "within 5 %")
        return Tabular("Drift on the looping clip: frames 900-1000 against 100-200", columns, rows)


def _ratio(value: float, base: float, least: float = 1e-9) -> float | None:
    return value / base if base >= least and not math.isnan(value) else None


def _text(value: float | None, form: str) -> str:
    return "-" if value is None or math.isnan(value) else format(value, form)


def _texts(rows: Sequence[Sequence[Any]], form: str) -> list[list[str]]:
    return [[one if isinstance(one, str) else _text(one, form) for one in row] for row in rows]


def _yes(value: bool | None) -> str:
    return {None: "-", True: "yes", False: "no"}[value]


def _plain(value: Any) -> str:
    if isinstance(value, Mapping):
        return "(" + ", ".join(f"{name} {_plain(one)}" for name, one in value.items()) + ")"
    if isinstance(value, list | tuple):
        return "(" + ", ".join(map(str, value)) + ")"
    return str(value)


def _markdown_row(cells: Sequence[str]) -> str:
    return "| " + " | ".join(cells) + " |"


def _finite(content: Any) -> Any:
    if isinstance(content, dict):
        return {key: _finite(value) for key, value in content.items()}
    if isinstance(content, list | tuple):
        return [_finite(value) for value in content]
    return None if isinstance(content, float) and not math.isfinite(content) else content
