"""What is asked to change on one tile, by its page and by controllers, and what the page is told of it."""

from __future__ import annotations

import logging
from typing import Protocol

from rearview.client import ControlApplied, Model, Settings, SettingsChange
from rearview.errors import InvalidRequest, Reason
from rearview.studio.changing import under
from rearview.studio.dials import Dials, Turn
from rearview.studio.flow import Change, Waiting
from rearview.studio.said import Applied, Said
from rearview.studio.telling import applied_said, rejected_said, turned_said

__all__ = ["Changes", "PageTold"]

logger = logging.getLogger(__name__)


class PageTold(Protocol):
    """What it needs of the wall."""

    def answer(self, applied: Applied) -> None:
        """Tell the page what became of a control."""

    def tell(self, said: Said, key: object = None) -> None:
        """Tell the page, if there is one."""

    def page_frame(self, number: int) -> int:
        """The page's number of a frame."""


class Changes:
    """For one event loop. Each control that the page has numbered is answered once."""

    def __init__(self, tile: int, waiting: Waiting, page: PageTold) -> None:
        self._tile, self._waiting, self._page = tile, waiting, page
        self._dials: Dials | None = None
        self._is_closed = False

    def opened(self, model: Model, max_steps: int) -> None:
        """A session has been opened: what may be turned of it."""
        self._dials = Dials(model, max_steps)

    def close(self) -> None:
        """The page hears nothing more."""
        self._is_closed = True

    def ask(self, control_id: int, settings: SettingsChange, *, is_over: bool) -> None:
        """The page asks; `is_over`: the tile takes none."""
        if is_over:
            self._reject(control_id, Reason.CLOSED, "open the tile again")
        elif not self._waiting.control(Change(control_id, settings)):
            self._reject(control_id, Reason.CALLS_EXHAUSTED, "too many controls are unanswered")

    def turn(self, turn: Turn, settings: Settings | None) -> None:
        """A controller turns something of the `settings` in force; None: the tile takes no frames.

        Raises InvalidRequest, and nothing has changed.
        """
        if settings is None or self._dials is None:
            raise InvalidRequest(Reason.NOT_OPEN, f"tile {self._tile + 1} is not open")
        change = self._dials.change(turn, under(settings, self._waiting.changes))
        self._waiting.turn(change)

    def applied(self, change: Change, answer: ControlApplied, model: Model) -> None:
        """The session has answered. Of what was turned together and refused, each part is asked again."""
        self._waiting.control_answered(change)
        if self._is_closed or (answer.rejected_reason is not None and self._asks_apart(change)):
            return
        frame = self._page.page_frame(change.frame)
        if change.is_turned:
            self._page.tell(turned_said(self._tile, change.settings, answer, model, frame))
            if answer.rejected_reason is not None:
                reason = answer.rejected_reason.name
                logger.warning("tile %d: what a controller turned is refused: %s", self._tile + 1, reason)
        elif change.id is not None:
            self._page.answer(applied_said(self._tile, change.id, answer, model, frame))

    def _asks_apart(self, change: Change) -> bool:
        is_whole = change.is_turned and len(change.settings.named()) > 1
        return is_whole and self._waiting.ask_apart(change.settings)

    def lost(self, change: Change) -> None:
        """The session has ended before it answered."""
        self._waiting.control_answered(change)
        if change.id is not None and not self._is_closed:
            self._reject(change.id, Reason.REPLICA_LOST, "the session has ended")

    def _reject(self, control_id: int, reason: Reason, text: str) -> None:
        self._page.answer(rejected_said(self._tile, control_id, reason, text))
