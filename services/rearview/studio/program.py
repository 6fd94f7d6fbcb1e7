"""What viewers of a wall see: one tile, or a mix of two, and the fade that leads there. `now` in seconds."""

from __future__ import annotations

from dataclasses import dataclass

from rearview.studio.protocol import ProgramAsked
from rearview.studio.said import ProgramSaid

__all__ = ["Program"]


@dataclass(frozen=True, slots=True)
class _Goal:
    a: int | None = None
    b: int | None = None
    mix: float = 0.0

    @property
    def tiles(self) -> frozenset[int]:
        return frozenset(tile for tile in (self.a, self.b) if tile is not None)


class Program:
    """The vision mixer's output. It knows no pictures: the viewers' pages blend them."""

    def __init__(self) -> None:
        self._goal, self._start = _Goal(), _Goal()
        self._ends_s = 0.0

    def ask(self, asked: ProgramAsked, now: float) -> None:
        """Cut or fade to what is asked, from what viewers see."""
        mix = asked.mix if asked.b is not None else 0.0
        self._start, self._goal = self._goal, _Goal(asked.a, asked.b, mix)
        self._ends_s = now + asked.fade_ms / 1000

    @property
    def tile(self) -> int | None:
        """The one on program, or the first of a mix; None: there is none yet."""
        return self._goal.a

    def begin_with(self, tile: int) -> bool:
        """Show the first tile that opens where nothing was chosen. Whether that is news."""
        if self._goal.a is not None:
            return False
        self._goal = _Goal(tile)
        return True

    def shows(self, tile: int, now: float) -> bool:
        """Whether viewers need the tile's pictures."""
        return tile in self._goal.tiles or (now < self._ends_s and tile in self._start.tiles)

    def said(self, now: float) -> ProgramSaid:
        """As a viewer is told now."""
        left_ms = max(0, round((self._ends_s - now) * 1000))
        fades = left_ms > 0 and self._start.a is not None
        start = {"a": self._start.a, "b": self._start.b, "mix": self._start.mix} if fades else None
        goal = self._goal
        return ProgramSaid(a=goal.a, b=goal.b, mix=goal.mix, fade_ms=left_ms if fades else 0, start=start)
