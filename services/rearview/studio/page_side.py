"""What a wall knows of its page: the socket that it has, what has come by it, and what it has not taken yet.

A page that loses its socket comes back by another one and goes on; a page that was loaded again is a new one.
"""

from __future__ import annotations

import secrets

from rearview.errors import RearviewError, Reason, StreamEnded
from rearview.studio.bell import Bell
from rearview.studio.flow import PageCredit, Unacknowledged
from rearview.studio.outbox import Outbox, SlowPeer
from rearview.studio.protocol import Hello
from rearview.studio.said import Applied, Credit, Dropped, ErrorSaid, Said, text_of

__all__ = ["PageSide"]


class PageSide:
    """For one event loop."""

    def __init__(self) -> None:
        self.number = 0
        """Of the page that came last, drawn at random; another socket of it changes nothing."""
        self.heard = 0
        """Messages but `received` that came from it."""
        self.keeps_presets = False
        """Whether it is one of a browser; a camera has none."""
        self.left_s: float | None = None
        """When its socket was gone; None while there is one, and before there was any."""
        self._outbox: Outbox | None = None
        self._credit, self._given = PageCredit(), Unacknowledged()
        self._bell = Bell()
        """Rings when the page has taken something."""

    @property
    def is_there(self) -> bool:
        """Whether it has a socket."""
        return self._outbox is not None

    @property
    def credit(self) -> int:
        """Frames that it may have sent in all."""
        return self._credit.granted

    @property
    def is_full(self) -> bool:
        """Whether it takes nothing any more."""
        return self._given.is_full

    # -- its sockets

    def hears(self, outbox: Outbox) -> bool:
        """Whether the socket of `outbox` is still its own."""
        return self._outbox is outbox

    def is_again(self, hello: Hello) -> bool:
        """Whether it is this page that has lost its connection and comes back."""
        return hello.page == self.number and hello.received is not None

    def attach(self, outbox: Outbox, hello: Hello, *, keeps_presets: bool = True) -> bool:
        """It has a socket; the one before is left. Whether it is the page of before, and goes on."""
        self.keeps_presets = keeps_presets
        goes_on = self.is_again(hello)
        if goes_on:
            self.close()
        else:
            self.refuse(StreamEnded(Reason.TAKEN_OVER, "another page has the session"), None)
        self._outbox, self.left_s = outbox, None
        if goes_on:
            self._given.received(hello.received or 0)
        else:
            self.number, self.heard = 1 + secrets.randbelow(1 << 48), 0
            self._credit, self._given = PageCredit(), Unacknowledged()
        self._bell.ring()
        return goes_on

    def detach(self, outbox: Outbox, now: float) -> None:
        """That socket is gone; what the page has not taken waits for it."""
        if self._outbox is outbox:
            self._outbox, self.left_s = None, now

    def refuse(self, error: RearviewError, now: float | None) -> None:
        """Say why it is left, and leave it."""
        self.tell(ErrorSaid(reason=error.reason.name, message=error.message))
        self.close()
        self._outbox, self.left_s = None, now

    def close(self) -> None:
        """Say nothing more."""
        if self._outbox is not None:
            self._outbox.close()

    # -- what it says

    def spend_credit(self) -> bool:
        """A frame came. False: it had no credit."""
        return self._credit.receive()

    def received(self, answers: int) -> None:
        """It has taken so many answers in all."""
        self._given.received(answers)
        self._bell.ring()

    # -- what it is told

    def tell(self, said: Said, key: object = None) -> None:
        """Once, if it is there; with a `key` a newer word replaces an older one."""
        self._put(text_of(said), key)

    def give_again(self) -> None:
        """What it was given before and has not taken, in order."""
        for answer in self._given:
            self._put(answer)

    def grant(self, room: int) -> None:
        """Let it send `room` frames more."""
        if self.is_there and self._credit.grant(room):
            self.tell(Credit(frames=self.credit), "credit")

    def give(self, tile: int, frame: int, picture: bytes, *, is_lossless: bool) -> None:
        """A picture. Of a live tile a newer one may take its place while it waits for the socket."""
        self._given.given(tile, frame, picture)
        if is_lossless or self._outbox is None:
            self._put(picture)
            return
        displaced = self._outbox.put_live(tile, frame, picture)
        if displaced is not None:
            late = text_of(Dropped(tile=tile, frame=displaced, reason="late"))
            self._given.displaced(tile, displaced, late)
            self._put(late)

    def drop(self, tile: int, frame: int, reason: str) -> None:
        """A frame has no picture."""
        text = text_of(Dropped(tile=tile, frame=frame, reason=reason))
        self._given.given(tile, frame, text)
        self._put(text)

    def answer(self, applied: Applied) -> None:
        """What became of a control."""
        text = text_of(applied)
        self._given.applied(applied.tile, text)
        self._put(text)

    async def room(self, tile: int) -> None:
        """Return when it may be given one more answer of the tile."""
        while not self._given.has_room(tile):
            await self._bell.wait()

    def _put(self, item: str | bytes, key: object = None) -> None:
        """Write it, if the page is there; one that does not read loses its socket."""
        if self._outbox is None:
            return
        try:
            self._outbox.put(item, key)
        except SlowPeer:
            self._outbox.close()
