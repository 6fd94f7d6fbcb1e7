"""What `translate` reads and writes, and in which shape: checked before anything starts."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from fractions import Fraction
from pathlib import Path
from typing import TYPE_CHECKING, cast

import typer

from rearview.cli.choices import Look, Past
from rearview.cli.cues import Cue

if TYPE_CHECKING:
    from rearview.cli.translation import Job
    from rearview.client import OpenOptions
    from rearview.client.media import Source
    from rearview.contract.score import Score

__all__ = ["Files"]


@dataclass(frozen=True, kw_only=True)
class Files:
    """From where to where. Raises BadParameter if nothing says a prompt."""

    source: str
    out: str
    size: tuple[int, int] | None
    """Width and height; None: as `fit` says."""
    fit: str
    """A value of `Fit`."""
    compare: bool
    max_frames: int | None
    camera: str | None
    fps: float | None
    cues: tuple[Cue, ...]
    control_videos: Mapping[str, str]
    """By name of the control."""
    score: Path | None
    overwrite: bool
    report: Path | None

    def job(self, look: Look, past: Past, policy: str | None) -> Job:
        """What the service is asked to do. Raises MediaError, OSError or RearviewError for what cannot be
        read, cannot be written, or would overwrite what is read.
        """
        from rearview.cli.cues import check_order, cues_of
        from rearview.cli.translation import Job, options_for
        from rearview.client import DropPolicy
        from rearview.client.media import Fit, open_source
        from rearview.client.targets import check_not_read, open_target

        look = self._with_first_prompt(look)
        score = self._score(look)
        rate = Fraction(self.fps).limit_denominator(1001) if self.fps else None
        source = open_source(self.source, device=self.camera, frame_rate=rate)
        check_order(self.cues, _length(source))
        target = open_target(self.out, source, overwrite=self.overwrite)
        controls = {name: open_source(place, frame_rate=rate) for name, place in self.control_videos.items()}
        check_not_read(self.out, [path for each in controls.values() for path in each.paths])
        self._check_report(source, *controls.values())
        options: OpenOptions = {}
        if score is not None:
            options.update(cast("OpenOptions", score.options))
        options = {**look.over(options), **past.options()}
        options.update(options_for(source, DropPolicy[policy] if policy else None))
        if self.size is not None:
            options["width"], options["height"] = self.size
        events = () if score is None else cues_of(score, float(source.frame_rate))
        cues = (*events, *self.cues)
        return Job(source, target, options, Fit(self.fit), self.compare, self.max_frames, cues, controls)

    def _with_first_prompt(self, look: Look) -> Look:
        """An `--at` that is the video's beginning says `--prompt`, too."""
        first = next(iter(self.cues), None)
        if look.prompt is not None or self.score is not None or first is None or not first.is_due(0, 0.0):
            return look
        return replace(look, prompt=first.change.prompt)

    def _score(self, look: Look) -> Score | None:
        from rearview.client.scores import read_score

        score = None if self.score is None else read_score(self.score)
        if look.prompt is None and (score is None or not score.open.settings.has_prompt):
            text = "say what the pictures shall look like"
            if self.cues:
                text += f" until {self.cues[0].moment}, here or with --at 0s"
            raise typer.BadParameter(text, param_hint="--prompt")
        return score

    def _check_report(self, *sources: Source) -> None:
        """Raises MediaError for a report that cannot be written, or that would replace what is read."""
        from rearview.client.pictures import MediaError
        from rearview.client.targets import check_writable

        if self.report is None:
            return
        check_writable(str(self.report), self.report.resolve())
        paths = [path for source in sources for path in source.paths]
        read = [*paths, *([self.score] if self.score is not None else [])]
        if self.report.exists() and any(self.report.samefile(path) for path in read if path.exists()):
            raise MediaError(f"--report {self.report}: is the input")
        if self.report.resolve() == Path(self.out).resolve():
            raise MediaError(f"--report {self.report}: is the output")


def _length(source: Source) -> tuple[int, float] | None:
    """Frames and seconds; None if it is not known."""
    if source.num_frames is None:
        return None
    return source.num_frames, float(source.num_frames / source.frame_rate)
