"""How large a picture, in how many steps, a machine keeps up with: from what a frame costs on it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from rearview.contract.cost import FrameCost

__all__ = ["WANTED_FPS", "Fit", "fit", "rate"]

WANTED_FPS = 12.0
"""From which on a picture that follows a hand looks live."""
SIDES = {"cpu": (256, 320, 384)}
OTHER_SIDES = (512,)
"""Of a GPU of whatever kind: what Stable Diffusion was trained for."""


@dataclass(frozen=True, slots=True)
class Fit:
    """What to start a model with."""

    side: int
    """Width and height, pixels."""
    steps: int
    frames_per_s: float | None
    """That one stream can reach; None: nothing was measured yet."""


def fit(device: str, costs: Sequence[FrameCost], steps: int, wanted_fps: float = WANTED_FPS) -> Fit:
    """The largest picture, in as many of `steps` as go, of which `wanted_fps` can be made.

    `device`: torch's type of it. `costs`: measured, one for each span, which work at the same time; none:
    the smallest size. Fewer steps come before fewer frames; where even one step is too slow, the smallest
    picture in all steps, since then the rate is lost anyhow.
    """
    sides = SIDES.get(device, OTHER_SIDES)
    if not costs:
        return Fit(sides[0], steps, None)
    for count in range(steps, 0, -1):
        for side in reversed(sides):
            found = rate(costs, side * side, count)
            if found >= wanted_fps:
                return Fit(side, count, found)
    return Fit(sides[0], steps, rate(costs, sides[0] ** 2, steps))


def rate(costs: Sequence[FrameCost], pixels: int, steps: int) -> float:
    """Frames per second of the slowest span, for pictures of so many pixels."""

    def seconds(cost: FrameCost) -> float:
        here = sum(step < steps for step in cost.steps)
        return (cost.once_s + here * cost.step_s) * pixels / cost.pixels

    return 1.0 / max(1e-9, max(map(seconds, costs)))
