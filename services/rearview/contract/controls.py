"""Which ControlNets of a deployment hold the shape of a session's pictures, and how firmly."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from enum import Enum

from rearview.errors import out_of_range

__all__ = [
    "MAX_CONTROLS",
    "ControlPicture",
    "WeightedControl",
    "acting",
    "are_allowed",
    "check_controls",
]

MAX_CONTROLS = 4
"""At a time."""
MAX_CONTROL_WEIGHT = 2.0


class ControlPicture(Enum):
    """What a ControlNet is shown of a frame: what it was trained to be shown."""

    CANNY = "canny"
    """Thin white edges on black, as OpenCV's Canny draws them (thresholds 100 and 200)."""
    SOFT_EDGES = "soft_edges"
    """How steep the brightness is, on black."""
    DEPTH = "depth"
    """Relative inverse depth: near is white."""
    TILE = "tile"
    """The frame itself."""
    SENT = "sent"
    """What the client sends with the frame: the service cannot draw it (poses)."""


@dataclass(frozen=True, slots=True)
class WeightedControl:
    """One ControlNet and how much of it."""

    name: str
    """Of the deployment's (`model.controls`)."""
    weight: float = 1.0
    """0 to 2. 0: as if it were not named."""


def are_allowed(controls: Sequence[WeightedControl]) -> bool:
    """Whether settings may have them: few enough, none twice, weights in their range."""
    names = [one.name for one in controls]
    weighs = all(0.0 <= one.weight <= MAX_CONTROL_WEIGHT for one in controls)
    return weighs and len(names) <= MAX_CONTROLS and len(set(names)) == len(names)


def acting(controls: Sequence[WeightedControl]) -> tuple[WeightedControl, ...]:
    """Those that change anything, in the order of their names, whatever the client's was."""
    return tuple(sorted((one for one in controls if one.weight > 0.0), key=lambda one: one.name))


def check_controls(controls: Sequence[WeightedControl], known: Collection[str]) -> None:
    """Raises InvalidRequest(SETTING_OUT_OF_RANGE) unless all of them are among the `known`."""
    if any(one.name not in known for one in controls):
        names = ", ".join(sorted(known)) or "none"
        raise out_of_range("controls", f"there is no such control; there are: {names}")
