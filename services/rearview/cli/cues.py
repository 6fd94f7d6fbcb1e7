"""When which settings begin: the `--at` of a command line, and the events of a score."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import typer

from rearview.cli.words import counted

if TYPE_CHECKING:
    from rearview.contract.score import Score
    from rearview.contract.settings import SettingsChange

__all__ = ["Cue", "Schedule", "check_order", "cues_of", "parse_cue"]

_SECONDS = re.compile(r"(\d+(?:\.\d+)?)s")
_CLOCK = re.compile(r"(?:(\d+):)?([0-5]?\d):([0-5]?\d(?:\.\d+)?)")
RATE_TOLERANCE = 2e-3
"""30 and 30000/1001 frames per second count as one rate."""


@dataclass(frozen=True, kw_only=True)
class Cue:
    """A change of settings, and the first frame under it: by its number, or by its time."""

    change: SettingsChange
    frame: int | None = None
    at_s: float = 0.0
    """Where there is no `frame`: seconds from the start."""

    def is_due(self, number: int, presentation_s: float) -> bool:
        """Whether a frame is under it. A frame's time may be rounded by a millisecond."""
        return number >= self.frame if self.frame is not None else presentation_s >= self.at_s - 1e-3

    @property
    def moment(self) -> str:
        """For people."""
        return f"frame {self.frame}" if self.frame is not None else f"{self.at_s:g} s"


class Schedule:
    """Cues of one run, each given out once."""

    def __init__(self, cues: Iterable[Cue]) -> None:
        self.waiting: list[Cue] = list(cues)

    def due(self, number: int, presentation_s: float) -> list[SettingsChange]:
        """The changes that come before a frame, in order."""
        due = [cue.change for cue in self.waiting if cue.is_due(number, presentation_s)]
        if due:
            self.waiting = [cue for cue in self.waiting if not cue.is_due(number, presentation_s)]
        return due


def parse_cue(words: Any) -> Cue:
    """The two words of `--at`: a moment and a prompt. "3s", "1.5s", "1:02" and "1:02:03.5" are times, "90" is
    the number of a frame. Raises BadParameter.
    """
    from rearview.contract.settings import SettingsChange

    if isinstance(words, Cue):
        return words
    moment, prompt = words
    if not prompt.strip():
        raise typer.BadParameter(f"the prompt at {moment} is empty")
    change = SettingsChange(prompt=prompt)
    if moment.isascii() and moment.isdigit():
        return Cue(change=change, frame=int(moment))
    if (found := _SECONDS.fullmatch(moment)) is not None:
        return Cue(change=change, at_s=float(found[1]))
    if (found := _CLOCK.fullmatch(moment)) is not None:
        return Cue(change=change, at_s=int(found[1] or 0) * 3600 + int(found[2]) * 60 + float(found[3]))
    raise typer.BadParameter(f"{moment!r} is no moment; write 3s, 1:02.5 or the number of a frame")


def check_order(cues: Sequence[Cue], length: tuple[int, float] | None) -> None:
    """`length`: frames and seconds of the source, where they are known. Raises BadParameter for cues that do
    not come after each other, times among times and frames among frames, and for one past the end.
    """
    latest: dict[bool, Cue] = {}
    for cue in cues:
        former = latest.get(cue.frame is None)
        if former is not None and (cue.frame or 0, cue.at_s) <= (former.frame or 0, former.at_s):
            text = f"{cue.moment} comes after {former.moment} on the line and not in the video"
            raise typer.BadParameter(text, param_hint="--at")
        latest[cue.frame is None] = cue
        if length is None:
            continue
        frames, seconds = length
        if cue.frame >= frames if cue.frame is not None else cue.at_s >= seconds:
            text = f"{cue.moment} is past the end: {counted(frames, 'frame')}, {seconds:.2f} s"
            raise typer.BadParameter(text, param_hint="--at")


def cues_of(score: Score, frame_rate: float) -> Sequence[Cue]:
    """The events of a score for a source of this rate: by number, or by time if the take had another rate.
    Raises BadParameter for events that change the size of pictures: a film has one.
    """
    for number, event in enumerate(score.events):
        if event.settings.width is not None or event.settings.height is not None:
            raise typer.BadParameter(
                f"events[{number}] changes the size of pictures, and a film has one size"
            )
    is_same = abs(score.frame_rate - frame_rate) <= RATE_TOLERANCE * frame_rate
    return [
        Cue(change=event.settings, frame=event.frame)
        if is_same
        else Cue(change=event.settings, at_s=event.frame / score.frame_rate)
        for event in score.events
    ]
