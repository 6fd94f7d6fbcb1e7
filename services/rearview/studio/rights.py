"""What a wall's page may say, and what it is told: all of it, or one session's share."""

from __future__ import annotations

from enum import Enum

from rearview.studio.protocol import Close, Control, Hello, Open, PageMessage, Received, TurnAsked
from rearview.studio.said import Lanes, ModelSaid, Said

__all__ = ["Rights"]


class Rights(Enum):
    """Of a page of the studio's own, or of one that has a token of one session."""

    STUDIO = "studio"
    ONE_SESSION = "one session"

    @property
    def has_key(self) -> bool:
        """Whether the wall's secret leads back to it, at the studio's own door."""
        return self is Rights.STUDIO

    def allows(self, said: PageMessage) -> bool:
        """Whether the page may say so."""
        if self is Rights.STUDIO:
            return True
        if isinstance(said, Open | Control | Close | TurnAsked):
            return said.tile == 0
        return isinstance(said, Received | Hello)

    def hears(self, said: Said) -> bool:
        """Whether the page is told so."""
        return self is Rights.STUDIO or not isinstance(said, Lanes | ModelSaid)
