"""Who watches a wall's program: any number of read-only sockets up to a limit, each with the newest only."""

from __future__ import annotations

from rearview.studio.outbox import Outbox
from rearview.studio.program import Program
from rearview.studio.protocol import ProgramAsked
from rearview.studio.said import text_of

__all__ = ["Viewers"]

MAX_VIEWERS = 16


class Viewers:
    """Of one wall. `now` in seconds."""

    def __init__(self) -> None:
        self.program = Program()
        self._outboxes: set[Outbox] = set()

    def __len__(self) -> int:
        return len(self._outboxes)

    def join(self, outbox: Outbox, now: float) -> bool:
        """One more. False: there are too many."""
        if len(self._outboxes) >= MAX_VIEWERS:
            return False
        self._outboxes.add(outbox)
        outbox.put(text_of(self.program.said(now)), "program")
        return True

    def leave(self, outbox: Outbox) -> None:
        """It is gone."""
        self._outboxes.discard(outbox)

    def show(self, asked: ProgramAsked, now: float) -> None:
        """Viewers see something else from now on."""
        self.program.ask(asked, now)
        self._tell(now)

    def begin_with(self, tile: int, now: float) -> None:
        """They see the first tile that there is, until something is chosen."""
        if self.program.begin_with(tile):
            self._tell(now)

    def give(self, tile: int, picture: bytes, now: float) -> None:
        """A picture, for those who see its tile; who is slow gets the next one instead."""
        if self._outboxes and self.program.shows(tile, now):
            for outbox in self._outboxes:
                outbox.put(picture, tile)

    def close(self) -> None:
        """There is nothing more to see."""
        for outbox in self._outboxes:
            outbox.close()

    def _tell(self, now: float) -> None:
        text = text_of(self.program.said(now))
        for outbox in self._outboxes:
            outbox.put(text, "program")
