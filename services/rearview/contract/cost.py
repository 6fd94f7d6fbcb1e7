"""What a frame takes of a replica: measured when it starts, told with its description, used by placement."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields
from typing import Any

from rearview.contract.lease import Load
from rearview.contract.settings import Settings

__all__ = ["FrameCost", "fits"]

ROUNDING = 1 + 1e-9
"""Sums of shares may be so much over a limit."""
DEFAULT = Settings()


@dataclass(frozen=True, slots=True)
class FrameCost:
    """Seconds that one frame takes of a replica, with forwards as full as pays best among those timed.

    Of other sizes a frame counts by its pixels, which is a little less than attention takes of larger ones.
    """

    pixels: int
    """Of the picture that was timed."""
    once_s: float
    """Of what every frame passes here: encoding, decoding."""
    step_s: float
    """Of each denoising step that is here."""
    cached_step_s: float
    """The same, in a session with a temporal cache."""
    steps: tuple[int, ...]
    """Indices of the denoising steps that are here."""
    control_s: float = 0.0
    """Of each ControlNet in each of them."""
    draw_s: Mapping[str, float] = field(default_factory=dict)
    """By name of a control, of drawing what it is shown, where frames are encoded."""

    @classmethod
    def of(cls, said: Mapping[str, Any]) -> FrameCost:
        """Of what a replica says, whose version may say more. Raises TypeError if it says less."""
        known = {one.name for one in fields(cls)}
        return cls(**{**{name: said[name] for name in known & said.keys()}, "steps": tuple(said["steps"])})

    def described(self) -> dict[str, Any]:
        """What `of` reads. What is of no use is left out: versions before do not know it."""
        of_no_use = {name for name in ("control_s", "draw_s") if not getattr(self, name)}
        return {name: value for name, value in asdict(self).items() if name not in of_no_use}

    def share(self, load: Load, max_steps: int, *, is_cached: bool, settings: Settings = DEFAULT) -> float:
        """What a session of `load` takes of the replica's time, 1.0 being all of it. It counts with all the
        denoising steps that it may ask for, twice where the guidance of `settings` predicts twice, and with
        the controls of `settings`.
        """
        rows = sum(settings.rows_at(step) for step in self.steps if step < max_steps)
        acting = settings.acting_controls
        controls_s = len(acting) * self.control_s
        once_s = self.once_s + sum(self.draw_s.get(one.name, 0.0) for one in acting)
        frame_s = once_s + rows * ((self.cached_step_s if is_cached else self.step_s) + controls_s)
        return frame_s * load.pixels_per_s / self.pixels

    def most(self, pixels_per_s: float) -> float:
        """The most that sessions of so many pixels per second, of which nothing else is known, take without
        guidance.
        """
        frame_s = self.once_s + len(self.steps) * max(self.step_s, self.cached_step_s)
        return frame_s * pixels_per_s / self.pixels


def fits(share: float, max_load: float | None) -> bool:
    """Whether a replica may have given away that share of its time. `max_load`: the limit; None: there is
    none.
    """
    return max_load is None or share <= max_load * ROUNDING
