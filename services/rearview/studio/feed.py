"""One session of the service: takes what waits for it, and gives what comes back, to the last answer."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Awaitable, Callable
from typing import Protocol

from rearview.client import ControlApplied, Dropped, Notice, Opened, Session, Translated
from rearview.errors import DropReason, RearviewError, Reason, StreamEnded
from rearview.studio.flow import Change, Taken
from rearview.studio.service import Service

__all__ = ["Feed", "Listener"]


class Listener(Protocol):
    """Who hears what comes back. Each frame taken is answered once."""

    async def answer_room(self) -> None:
        """Return when one more answer may be read from the service."""

    def translated(self, taken: Taken, answer: Translated) -> None:
        """A frame's picture."""

    def dropped(self, taken: Taken, reason: DropReason) -> None:
        """A frame has none."""

    def applied(self, feed: Feed, change: Change, answer: ControlApplied) -> None:
        """A control was answered."""

    def lost(self, change: Change) -> None:
        """A control never will be."""

    def noticed(self, notice: Notice) -> None:
        """Something to know."""


class Feed:
    """An open session. `run` owns it to its end."""

    def __init__(self, session: Session, service: Service) -> None:
        """Of a session that was entered."""
        self.service, self._session = service, session
        self._frames: dict[int, Taken] = {}
        """Those that are not answered."""
        self._changes: deque[Change] = deque()
        """The same of controls, in order."""
        self._new: list[Change] = []
        """Controls after the last frame."""
        self._last = -1
        """Number of the last frame that was sent, or that an earlier session had."""

    def begin_at(self, number: int) -> None:
        """No frame before this one will be taken."""
        self._last = number - 1

    @property
    def opened(self) -> Opened:
        """The session, as the service describes it."""
        return self._session.opened

    @property
    def is_connected(self) -> bool:
        """Whether no lost connection is being sought again."""
        return self._session.is_connected

    async def run(self, take: Callable[[], Awaitable[Taken | Change | None]], listener: Listener) -> None:
        """Feed the session what `take` gives, until that is None and all is answered.

        Raises RearviewError if the session ends before that; then what was taken is dropped as a fault.
        """
        sender = asyncio.create_task(self._send(take))
        sender.add_done_callback(self._end_if_failed)
        try:
            await listener.answer_room()
            async for answer in self._session:
                self._give(answer, listener)
                await listener.answer_room()
        finally:
            sender.cancel()
            await asyncio.gather(sender, return_exceptions=True)
            for taken in self._frames.values():
                listener.dropped(taken, DropReason.FAULT)
            for change in self._changes:
                listener.lost(change)
            await self._session.__aexit__(None, None, None)

    async def discard(self) -> None:
        """End a session that was never run."""
        await self._session.__aexit__(None, None, None)

    async def _send(self, take: Callable[[], Awaitable[Taken | Change | None]]) -> None:
        while (item := await take()) is not None:
            if isinstance(item, Change):
                item.after = self._last
                self._changes.append(item)
                self._new.append(item)
                await self._session.control(**item.settings.named())
                continue
            for change in self._new:
                change.first = item.number
            self._new, self._last = [], item.number
            self._frames[item.number] = item
            await self._session.send(item.frame.picture, index=item.number, format=self.service.format)
        await self._session.finish()

    def _end_if_failed(self, sender: asyncio.Task[None]) -> None:
        if sender.cancelled() or (failure := sender.exception()) is None:
            return
        is_known = isinstance(failure, RearviewError)
        ended = failure if is_known else StreamEnded(Reason.INTERNAL, "a frame could not be sent")
        self._session.abort(ended)  # type: ignore[arg-type]

    def _give(self, answer: object, listener: Listener) -> None:
        if isinstance(answer, Translated):
            listener.translated(self._frames.pop(answer.frame_index), answer)
        elif isinstance(answer, Dropped):
            listener.dropped(self._frames.pop(answer.frame_index), answer.reason)
        elif isinstance(answer, ControlApplied):
            listener.applied(self, self._changes.popleft(), answer)
        elif isinstance(answer, Notice):
            listener.noticed(answer)
