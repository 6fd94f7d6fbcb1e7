"""One tile of a wall: a session with what waits for it, and what the page is told of it.

    page ─► Waiting ─► Feed (the session) ─► page, viewers
                        │ move: another one, on another service; the old one runs out

A tile outlives its sessions: one without frames or changes for a minute is let go, and opened again with the
next of either.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Iterator
from dataclasses import replace
from functools import partial
from typing import Literal, Protocol

from rearview.client import ControlApplied, DropPolicy, Notice, SettingsChange, Translated
from rearview.contract.opening import OpenRequest
from rearview.errors import DropReason, Fault, RearviewError, Reason, Refused
from rearview.studio.bell import Bell
from rearview.studio.changes import Changes
from rearview.studio.dials import Turn
from rearview.studio.feed import Feed
from rearview.studio.figures import Figures
from rearview.studio.flow import Change, Taken, Waiting
from rearview.studio.opener import Opener
from rearview.studio.said import Applied, Opened, Said, State
from rearview.studio.service import Service
from rearview.studio.spoken import plain
from rearview.studio.telling import notice_said, opened_said

__all__ = ["Tile", "WallSide"]

logger = logging.getLogger(__name__)

REST_AFTER_S = 60.0
"""A tile without frames or changes for so long lets its session go."""


class WallSide(Protocol):
    """What a tile needs of its wall."""

    def now(self) -> float:
        """Monotonic seconds."""

    def tell(self, said: Said, key: object = None) -> None:
        """Tell the page, if there is one; with a `key` a newer word replaces an older one."""

    def give(self, tile: Tile, taken: Taken, picture: Translated) -> None:
        """A picture for the page and for viewers."""

    def drop(self, tile: Tile, taken: Taken, reason: str) -> None:
        """Tell the page that a frame has no picture."""

    def answer(self, applied: Applied) -> None:
        """Tell the page what became of a control."""

    async def room(self, tile: Tile) -> None:
        """Return when the page may be given one more answer."""

    async def service(self) -> Service:
        """Where to open sessions, once it is known. Raises RearviewError."""

    def page_frame(self, number: int) -> int:
        """The page's number of a frame, or of the first one after it that this page has sent."""

    @property
    def next_number(self) -> int:
        """Of the next frame from the page."""


class Tile:
    """Its tasks live until `close`. For one event loop."""

    def __init__(self, number: int, asked: OpenRequest, wall: WallSide) -> None:
        self.number, self._wall = number, wall
        self._opener = Opener(asked, wall.service)
        self.is_lossless = asked.drop_policy is DropPolicy.LOSSLESS
        self._waiting = Waiting(is_lossless=self.is_lossless)
        self._changes = Changes(number, self._waiting, wall)
        self._bell = Bell()
        """Rings when something waits, or the session is another one."""
        self._feed: Feed | None = None
        self.said: Opened | None = None
        """How it was opened, with the settings in force."""
        self._state = State(tile=number, state="opening")
        self._tasks: dict[asyncio.Task[None], Feed | None] = {}
        self._is_closed = self._rests = False
        self._used_s = self._spoke_s = wall.now()
        self.figures = Figures()
        self._start()

    # -- what the page asks

    @property
    def is_over(self) -> bool:
        """Whether it takes no frames until it is opened anew."""
        return self._state.state in ("refused", "ended") and not self._rests

    @property
    def room(self) -> int | None:
        """Frames that the page may send; None if it does not matter to this tile: it takes none."""
        return None if self.is_over or self._state.state == "queued" else self._waiting.room

    @property
    def asked(self) -> OpenRequest:
        """How it is opened anew: as it was asked, with the changes that have held since."""
        return self._opener.asked

    def take(self, taken: Taken) -> None:
        """A frame from the page; a live tile that is behind drops an older one for it."""
        if self._state.state == "queued":
            self._wall.drop(self, taken, "queued")
        if self.room is None:
            return
        self._use()
        displaced = self._waiting.put(taken)
        if displaced is not None:
            self.dropped(displaced, DropReason.SUPERSEDED)
        self._bell.ring()

    def control(self, control_id: int, settings: SettingsChange) -> None:
        """A change of settings, in its place among the frames. Before the next one a page may wait for it."""
        self._use()
        self._changes.ask(control_id, settings, is_over=self.is_over)
        self._bell.ring()

    def turn(self, turn: Turn) -> None:
        """A controller turns something; it goes before the next frame. Raises InvalidRequest."""
        self._changes.turn(turn, None if self.is_over or self.said is None else self.said.settings)

    async def move(self, service: Service) -> None:
        """Go on with a session of another service under what was asked; the old one runs out.

        Raises RearviewError, and all stays as it was.
        """
        if self.is_over or self._feed is None:
            return
        feed = await self._opener.open(service)
        if self._is_closed or self._feed is None:
            await feed.discard()
            return
        self._begin(feed)

    async def close(self) -> None:
        """End its sessions; of what waits for one the page is told."""
        _give_up(self._waiting, self)
        self._is_closed = True
        self._changes.close()
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    @property
    def services(self) -> Iterator[Service]:
        """Those that its sessions are on, or are being opened on."""
        yield from (feed.service for feed in self._tasks.values() if feed is not None)
        yield from self._opener.services

    def is_elsewhere(self, service: Service) -> bool:
        """Whether it has a session, and on another service."""
        return self._feed is not None and self._feed.service is not service

    @property
    def session_id(self) -> str:
        """Of the session that is fed; empty: there is none."""
        return "" if self._feed is None else self._feed.opened.session_id

    # -- what a new page is told, and when time passes

    def tell_state(self) -> None:
        """Say again how it is."""
        self._wall.tell(self._state, ("state", self.number))

    def tick(self, now: float) -> None:
        """Say how it goes; keep a silent session, and let one go that is silent for long."""
        feed = self._feed
        if feed is None:
            return
        self._wall.tell(self.figures.said(self.number, now), ("stats", self.number))
        state = self._state.state
        if state == "live" and not feed.is_connected:
            self._say("reconnecting", message="the connection to the service is lost")
        elif state == "reconnecting" and feed.is_connected:
            self._say("live")
        if now - self._used_s > REST_AFTER_S:
            self._rest()
        elif now - max(self._used_s, self._spoke_s) > feed.opened.idle_timeout_s / 3:
            self._spoke_s = now
            self._waiting.control(Change(None, SettingsChange()))  # says nothing, and is heard
            self._bell.ring()

    # -- what comes back (`feed.Listener`)

    async def answer_room(self) -> None:
        """Return when the page may be given one more answer."""
        await self._wall.room(self)

    def translated(self, taken: Taken, answer: Translated) -> None:
        """A frame's picture."""
        now = self._wall.now()
        self.figures.translated(now, now - taken.received_s, answer.timings)
        if not self._is_closed:
            self._wall.give(self, taken, answer)

    def dropped(self, taken: Taken, reason: DropReason) -> None:
        """A frame has none."""
        self.figures.dropped(plain(reason))
        if not self._is_closed:
            self._wall.drop(self, taken, plain(reason))

    def applied(self, feed: Feed, change: Change, answer: ControlApplied) -> None:
        """A control was answered."""
        self._changes.applied(change, answer, feed.service.model)
        if answer.rejected_reason is None:
            self._opener.agree(change.settings)
            if self.said is not None:
                self.said = replace(self.said, settings=answer.settings, advice=answer.advice)
            if feed is not self._feed and self._feed is not None:
                # The session that goes on was opened before it was known to hold.
                self._waiting.control(Change(None, change.settings))
                self._bell.ring()

    def lost(self, change: Change) -> None:
        """The session has ended before it answered a control."""
        self._changes.lost(change)

    def noticed(self, notice: Notice) -> None:
        """Something to know."""
        self._wall.tell(notice_said(self.number, notice, self._wall.page_frame(self._next_number)))

    # -- how

    def _use(self) -> None:
        self._used_s = self._wall.now()
        if self._rests:
            self._rests = False
            self._start()

    def _start(self) -> None:
        task = asyncio.create_task(self._live(), name=f"tile-{self.number}")
        self._tasks[task] = None
        task.add_done_callback(self._forget)
        self._say("opening")

    def _forget(self, task: asyncio.Task[None]) -> None:
        self._tasks.pop(task, None)
        if not task.cancelled() and (failure := task.exception()) is not None:
            logger.error("a tile failed: %s", type(failure).__name__, exc_info=failure)
            self._say("ended", Fault(message="the gateway failed"))

    async def _live(self) -> None:
        """Open a session, and hand it to a task of its own."""

        def refused(error: RearviewError, wait_s: float) -> None:
            self._say("queued", error, retry_ms=round(1000 * wait_s))

        try:
            self._begin(await self._opener.open_patiently(refused))
        except RearviewError as error:
            self._say("refused", error)

    def _begin(self, feed: Feed) -> None:
        """From here on frames go to this one."""
        self._feed = feed
        task = asyncio.create_task(self._run(feed), name=f"tile-{self.number}-session")
        self._tasks[task] = feed
        task.add_done_callback(self._forget)
        self._spoke_s = self._wall.now()
        feed.begin_at(self._next_number)
        self._bell.ring()
        frame = self._wall.page_frame(self._next_number)
        self._changes.opened(feed.service.model, self._opener.max_steps)
        self.said = opened_said(self.number, feed.opened, self.asked, feed.service.model, frame)
        self._wall.tell(self.said)
        self._say("live")

    async def _run(self, feed: Feed) -> None:
        try:
            await feed.run(partial(self._next, feed), self)
        except RearviewError as error:
            if self._feed is feed:
                self._feed = None
                self._say("ended", error)

    @property
    def _next_number(self) -> int:
        """Of the oldest frame that waits, or of the next one from the page."""
        first = self._waiting.first
        return self._wall.next_number if first is None else first

    async def _next(self, feed: Feed) -> Taken | Change | None:
        """What goes to the session next; None: it is not the tile's any more."""
        while feed is self._feed:
            item = self._waiting.take()
            if item is not None:
                return item
            await self._bell.wait()
        return None

    def _rest(self) -> None:
        self._feed, self._rests = None, True
        self._bell.ring()
        self._say("ended", Refused(Reason.IDLE, "nothing came: it opens again with the next frame or change"))

    def _say(
        self,
        state: Literal["opening", "queued", "live", "reconnecting", "refused", "ended"],
        error: RearviewError | None = None,
        *,
        message: str = "",
        retry_ms: int | None = None,
    ) -> None:
        reason = None if error is None else error.reason.name
        text = message if error is None else error.message
        self._state = State(tile=self.number, state=state, reason=reason, message=text, retry_ms=retry_ms)
        if not self._is_closed:
            self.tell_state()
        if self.is_over:
            _give_up(self._waiting, self)


def _give_up(waiting: Waiting, tile: Tile) -> None:
    while (item := waiting.take()) is not None:
        if isinstance(item, Taken):
            tile.dropped(item, DropReason.FAULT)
        else:
            tile.lost(item)
