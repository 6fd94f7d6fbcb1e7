"""What controllers may turn of a tile's settings, and which change that is. OSC and MIDI come this way.

A dial has a name and a range. It takes a value in the setting's own unit, or, of a fader, a number from 0 to
1 that stands for a place in the range: `strength` at 0.5 is 0.53. Values only: no clock, no I/O.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from enum import Enum
from typing import Any

from rearview.client import (
    Guidance,
    Model,
    NoiseRule,
    Settings,
    SettingsChange,
    WeightedAdapters,
    WeightedControl,
    WeightedPrompt,
)
from rearview.contract.controls import MAX_CONTROLS
from rearview.contract.settings import MAX_ADAPTERS
from rearview.errors import out_of_range

__all__ = ["NOT_TURNED", "Dials", "Range", "Turn", "Value", "dials_said"]

Value = float | str
MAX_SEED = (1 << 64) - 1


@dataclass(frozen=True, slots=True)
class Range:
    """A dial's: what a fader goes over, and what a value may be."""

    low: float
    """At the fader's 0."""
    high: float
    """At the fader's 1."""
    step: float
    """Between two places of a slider. At 1 there are whole numbers alone."""
    least: float
    """Of a value."""
    most: float
    """Of a value."""

    def at(self, share: float) -> float:
        """The value at a place of the fader, 0 to 1, rounded to a step."""
        return round(self.low + self.step * round(share * (self.high - self.low) / self.step), 9)


RANGES: Mapping[str, Range] = {
    "strength": Range(0.05, 1.0, 0.01, 0.01, 1.0),
    "steps": Range(1, 8, 1, 1, 8),
    "seed": Range(0, 999, 1, 0, MAX_SEED),
    "guidance_scale": Range(1.0, 12.0, 0.1, 1.0, 20.0),
    "delta": Range(0.0, 2.0, 0.05, 0.0, 10.0),
    "blend_frames": Range(0, 120, 1, 0, 10_000),
    "jpeg_quality": Range(40, 100, 1, 1, 100),
    "reference_scale": Range(0.0, 2.0, 0.05, 0.0, 2.0),
    "adapter": Range(-1.0, 2.0, 0.05, -4.0, 4.0),
    "control": Range(0.0, 2.0, 0.05, 0.0, 2.0),
    "share": Range(0.05, 2.0, 0.05, 0.01, 1000.0),
}
"""`adapter`, `control` and `share` are of many dials each: `adapter/ink`, `control/edges`, `share/2`."""
CHOICES: Mapping[str, type[Enum]] = {"noise_rule": NoiseRule, "guidance": Guidance}
"""Their values are names of members in lower case; a fader goes over them in order."""
TEXTS = frozenset({"prompt", "negative_prompt", "adapters"})
"""No fader turns them."""
NOT_TURNED = frozenset(
    {
        "prompts",
        "adapter_mix",
        "controls",
        "timestep_indices",
        "width",
        "height",
        "reference",
        "reference_mask",
    }
)
"""Lists, whose weights are dials of their own; what follows from the source; pictures."""
DIGITS = 6
"""Behind the point, that are meant: OSC's floats of 32 bits have no more, and 0.01 comes as a little less."""
WHOLE = 1
"""The step of dials of whole numbers."""


@dataclass(frozen=True, slots=True)
class Turn:
    """One turn of a dial."""

    name: str
    value: Value
    is_share: bool = False
    """Whether the value is a fader's place, 0 to 1."""


def _ranges_of(max_steps: int) -> Mapping[str, Range]:
    """Of sessions with so many steps at most."""
    steps = replace(RANGES["steps"], high=max(1, max_steps), most=max(1, max_steps))
    return {**RANGES, "steps": steps}


def dials_said(max_steps: int) -> dict[str, dict[str, float]]:
    """The ranges as pages are told."""
    ranges = _ranges_of(max_steps)
    return {name: {"low": one.low, "high": one.high, "step": one.step} for name, one in ranges.items()}


class Dials:
    """Those of one session."""

    def __init__(self, model: Model, max_steps: int = 0) -> None:
        """`max_steps`: of the session; 0: the model's."""
        self._model = model
        self._ranges = _ranges_of(min(max_steps or model.max_steps, model.max_steps))

    def change(self, turn: Turn, settings: Settings) -> SettingsChange:
        """The change that a turn makes of `settings`. Raises InvalidRequest(SETTING_OUT_OF_RANGE)."""
        kind, _, which = turn.name.partition("/")
        weigh = _WEIGHTS.get(kind)
        if weigh is not None and which:
            return weigh(which, self._number(kind, turn), settings, self._model)
        if which or (kind not in (*self._ranges, *CHOICES, *TEXTS)) or weigh is not None:
            raise out_of_range(turn.name, f"there is no such setting; there are: {', '.join(self.names)}")
        if kind in self._ranges:
            return SettingsChange(**{kind: self._number(kind, turn)})
        value: Any = _choice(kind, turn) if kind in CHOICES else self._text(kind, turn)
        return SettingsChange(**{kind: value})

    @property
    def names(self) -> Sequence[str]:
        """Of all dials that this model has; `share/1` stands for those of a mix."""
        own = [name for name in self._ranges if name not in _WEIGHTS]
        adapters = [f"adapter/{name}" for name in self._model.adapters]
        controls = [f"control/{name}" for name in self._model.controls]
        return [*own, *CHOICES, *sorted(TEXTS), "share/1", *adapters, *controls]

    def _number(self, kind: str, turn: Turn) -> Any:
        """The value that is meant, in the dial's range; a whole number where there are no others."""
        within, value = self._ranges[kind], turn.value
        if isinstance(value, str) or not math.isfinite(value):
            raise out_of_range(turn.name, "a number is needed")
        if isinstance(value, float):
            value = round(value, DIGITS)
        least, most = (0.0, 1.0) if turn.is_share else (within.least, within.most)
        if not least <= value <= most:
            unit = "a fader's place" if turn.is_share else "the value"
            raise out_of_range(turn.name, f"{unit} is from {least:g} to {most:g}")
        meant = within.at(value) if turn.is_share else value
        if within.step != WHOLE:
            return float(meant)
        if meant != int(meant):
            raise out_of_range(turn.name, "a whole number is needed")
        return int(meant)

    def _text(self, kind: str, turn: Turn) -> str:
        if not isinstance(turn.value, str) or turn.is_share:
            raise out_of_range(turn.name, "words are needed")
        if kind == "adapters" and turn.value not in ("", *self._model.adapters):
            raise out_of_range(turn.name, f"there are: {', '.join(self._model.adapters) or 'none'}")
        return turn.value


def _choice(kind: str, turn: Turn) -> Enum:
    members = list(CHOICES[kind])
    if turn.is_share:
        if isinstance(turn.value, str) or not 0.0 <= turn.value <= 1.0:
            raise out_of_range(turn.name, "a fader's place is from 0 to 1")
        return members[min(len(members) - 1, int(turn.value * len(members)))]
    for member in members:
        if turn.value == member.name.lower():
            return member
    raise out_of_range(turn.name, f"it is one of {', '.join(one.name.lower() for one in members)}")


def _adapter(name: str, weight: float, settings: Settings, model: Model) -> SettingsChange:
    """One set of adapters at a weight; at 0 it goes, and so does the first of too many."""
    if name not in model.adapters or name in model.merged_adapters:
        raise out_of_range(f"adapter/{name}", "there is no such adapter that takes a weight")
    present = settings.adapter_mix or settings.acting_adapters
    others = [one for one in present if one.adapters not in (name, *model.merged_adapters)]
    mix = tuple(one for one in (*others, WeightedAdapters(name, weight)) if one.weight)[-MAX_ADAPTERS:]
    return SettingsChange(adapter_mix=mix) if mix else SettingsChange(adapters="")


def _control(name: str, weight: float, settings: Settings, model: Model) -> SettingsChange:
    """One ControlNet at a weight; at 0 it goes, and so does the first of too many."""
    if name not in model.controls:
        raise out_of_range(f"control/{name}", "there is no such control")
    others = [one for one in settings.controls if one.name != name]
    held = tuple(one for one in (*others, WeightedControl(name, weight)) if one.weight > 0)
    return SettingsChange(controls=held[-MAX_CONTROLS:])


def _share(which: str, weight: float, settings: Settings, model: Model) -> SettingsChange:
    """One prompt of the mix at a weight; they are counted from 1."""
    prompts = list(settings.prompts)
    if not (which.isascii() and which.isdigit() and 1 <= int(which) <= len(prompts)):
        raise out_of_range(f"share/{which}", f"the mix has {len(prompts)} prompts")
    prompts[int(which) - 1] = WeightedPrompt(prompts[int(which) - 1].prompt, weight)
    return SettingsChange(prompts=tuple(prompts))


_WEIGHTS: Mapping[str, Callable[[str, float, Settings, Model], SettingsChange]] = {
    "adapter": _adapter,
    "control": _control,
    "share": _share,
}
