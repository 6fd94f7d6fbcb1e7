"""A wall: one source of frames, up to nine tiles, and what viewers see. It outlives the page's socket.

The page's frames are numbered anew by each page; the wall's numbers rise over all of them, so that a session
that went on while the page was loaded again can tell old frames from new ones.
"""

from __future__ import annotations

import asyncio
import secrets
from collections.abc import Sequence

from rearview.client import Translated
from rearview.errors import InvalidRequest, RearviewError, Reason
from rearview.studio.dials import Turn
from rearview.studio.flow import PAGE_FRAMES, Taken
from rearview.studio.lanes import Span, lanes_said
from rearview.studio.outbox import Outbox
from rearview.studio.page_side import PageSide
from rearview.studio.protocol import Control, FrameIn, Hello, Open, ProgramAsked, picture_out
from rearview.studio.rights import Rights
from rearview.studio.said import Applied, ErrorSaid, Lanes, Said, Serving, Welcome
from rearview.studio.service import Service, described
from rearview.studio.supply import Connect, Supply
from rearview.studio.tile import Tile
from rearview.studio.viewers import Viewers

__all__ = ["Wall"]

MAX_CLOSING = 18
"""Tiles of a wall that are on their way out."""


class Wall:
    """For one event loop. `close` ends its sessions."""

    def __init__(self, connect: Connect, token: str | None, rights: Rights) -> None:
        """`rights`: those of its page."""
        self.token, self.rights = token, rights
        self.key, self.viewer_key = secrets.token_urlsafe(24), secrets.token_urlsafe(18)
        self.tiles: dict[int, Tile] = {}
        self.viewers = Viewers()
        self.page = PageSide()
        self._lanes: Lanes | None = None
        """As the page was told last."""
        self._base, self.next_number = 0, 0
        self._supply = Supply(connect, self._tell_serving)
        self._tasks: set[asyncio.Task[None]] = set()
        """Tiles on their way out."""
        self._switching: asyncio.Task[None] | None = None

    # -- the page's socket

    def attach(self, outbox: Outbox, hello: Hello, *, resumed: bool, keeps_presets: bool = True) -> None:
        """A page is there: tell it what there is. A socket that is still there is left."""
        if not self.page.attach(outbox, hello, keeps_presets=keeps_presets):
            self._base = self.next_number
        self._lanes = None
        said = [tile.said for tile in self.tiles.values() if tile.said is not None]
        program = self.viewers.program.said(self.now())
        self.tell(
            Welcome(
                wall=self.key,
                viewer=self.viewer_key,
                resumed=resumed,
                page=self.page.number,
                heard=self.page.heard,
                credit=self.page.credit,
                tiles=said,
                program=program,
            )
        )
        for tile in self.tiles.values():
            tile.tell_state()
        self.page.give_again()
        self._tell_serving()

    # -- what the page asks

    def take(self, frame: FrameIn) -> None:
        """A frame for every open tile. Raises InvalidRequest for one without credit or out of order."""
        number = self._base + frame.frame
        if not self.page.spend_credit():
            raise InvalidRequest(Reason.CREDIT_EXCEEDED, "a frame without credit")
        try:
            if number < self.next_number:
                raise InvalidRequest(Reason.MESSAGE_INVALID, "the frame index does not rise")
            self.next_number = number + 1
            taken = Taken(number, frame, self.now())
            for tile in self.tiles.values():
                tile.take(taken)
        finally:
            self.tell_credit()

    def open(self, asked: Open) -> None:
        """Open a tile. Raises InvalidRequest if it is open."""
        present = self.tiles.get(asked.tile)
        if present is not None:
            if not present.is_over:
                raise InvalidRequest(Reason.ALREADY_OPEN, f"tile {asked.tile} is open: close it first")
            self.close_tile(asked.tile)
        self.tiles[asked.tile] = Tile(asked.tile, asked.options, self)
        self.viewers.begin_with(asked.tile, self.now())
        self.tell_credit()

    def close_tile(self, number: int) -> None:
        """Close a tile. Raises InvalidRequest if there is none, or too many are being closed."""
        if len(self._tasks) >= MAX_CLOSING:
            raise InvalidRequest(Reason.CALLS_EXHAUSTED, "too many tiles are being closed")
        task = asyncio.create_task(self._tile(number).close())
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        del self.tiles[number]
        self.tell_credit()

    def control(self, asked: Control) -> None:
        """Change a tile's settings. Raises InvalidRequest if there is no such tile."""
        self._tile(asked.tile).control(asked.id, asked.settings)

    def turn(self, number: int, turn: Turn) -> None:
        """A controller turns something. Raises InvalidRequest, and nothing has changed."""
        tile = self.tiles.get(number)
        if tile is None:
            raise InvalidRequest(Reason.NOT_OPEN, f"tile {number + 1} is not open")
        tile.turn(turn)

    def show(self, asked: ProgramAsked) -> None:
        """Let viewers see other tiles."""
        self.viewers.show(asked, self.now())

    def received(self, answers: int) -> None:
        """The page has taken so many answers in all."""
        self.page.received(answers)
        self.tell_credit()

    def use(self, model: str) -> None:
        """Let every tile go on with another model, once it is loaded. Raises InvalidRequest while one is."""
        if self._switching is not None and not self._switching.done():
            raise InvalidRequest(Reason.CALLS_EXHAUSTED, "the wall is on its way to another model")
        self._switching = asyncio.create_task(self._use(model))

    def tell_lanes(self, spans: Sequence[Span]) -> None:
        """Draw the replicas anew, if something has changed."""
        said = lanes_said(spans, {tile.session_id: tile.number for tile in self.tiles.values()})
        if said != self._lanes:
            self._lanes = said
            self.tell(said, "lanes")

    # -- for its tiles (`tile.WallSide`)

    def now(self) -> float:
        """Monotonic seconds."""
        return asyncio.get_running_loop().time()

    def tell(self, said: Said, key: object = None) -> None:
        """Tell the page, if there is one and it is to know; one that does not read loses its socket."""
        if self.rights.hears(said):
            self.page.tell(said, key)

    def give(self, tile: Tile, taken: Taken, picture: Translated) -> None:
        """A picture for the page and for viewers."""
        server_ms, service_ms = 1000 * (self.now() - taken.received_s), 1000 * picture.timings.total_s
        data = picture_out(tile.number, taken.frame, server_ms, service_ms, picture.data)
        self.viewers.give(tile.number, data, self.now())
        if taken.number >= self._base:
            self.page.give(tile.number, taken.frame.frame, data, is_lossless=tile.is_lossless)

    def drop(self, tile: Tile, taken: Taken, reason: str) -> None:
        """Tell the page that a frame has no picture."""
        if taken.number >= self._base:
            self.page.drop(tile.number, taken.frame.frame, reason)
        self.tell_credit()

    def answer(self, applied: Applied) -> None:
        """Tell the page what became of a control."""
        self.page.answer(applied)

    async def room(self, tile: Tile) -> None:
        """Return when the page may be given one more answer of the tile."""
        await self.page.room(tile.number)

    async def service(self) -> Service:
        """Where tiles are opened. Raises RearviewError if it cannot be used."""
        return await self._supply.present()

    def page_frame(self, number: int) -> int:
        """The page's number of a frame; of one that another page sent before: 0."""
        return max(0, number - self._base)

    # -- time, and the end

    def tick(self, now: float) -> None:
        """Twice a second."""
        for tile in self.tiles.values():
            tile.tick(now)
        self._supply.leave_unused([service for tile in self.tiles.values() for service in tile.services])
        self.tell_credit()

    def tell_credit(self) -> None:
        """Tell the page of credit that it has gained."""
        rooms = [room for tile in self.tiles.values() if (room := tile.room) is not None]
        self.page.grant(0 if self.page.is_full else min(rooms, default=PAGE_FRAMES))

    async def close(self) -> None:
        """End everything that belongs to it."""
        self.viewers.close()
        if self._switching is not None:
            self._switching.cancel()
            await asyncio.gather(self._switching, return_exceptions=True)
        tiles = [tile.close() for tile in self.tiles.values()]
        await asyncio.gather(*self._tasks, *tiles, return_exceptions=True)
        self.tiles.clear()
        await self._supply.close()
        self.page.close()

    # -- how

    def _tile(self, number: int) -> Tile:
        if number not in self.tiles:
            raise InvalidRequest(Reason.NOT_OPEN, f"tile {number} is not open")
        return self.tiles[number]

    def _tell_serving(self) -> None:
        """Once the wall's service is known, when that changes, and when a new page asks."""
        known = self._supply.known
        if isinstance(known, RearviewError):
            self.tell(ErrorSaid(reason=known.reason.name, message=known.message), "serving")
        elif known is not None:
            self.tell(Serving(id=known.id, model=described(known.model)), "serving")

    async def _use(self, model: str) -> None:
        try:
            service = await self._supply.change(model)
        except RearviewError as error:
            self.tell(ErrorSaid(reason=error.reason.name, message=error.message))
            return
        self._tell_serving()
        stay: set[Tile] = set()
        while tiles := [
            each for each in self.tiles.values() if each not in stay and each.is_elsewhere(service)
        ]:
            for tile in tiles:
                try:
                    await tile.move(service)
                except RearviewError as error:
                    stay.add(tile)
                    text = f"tile {tile.number} stays with its model: {error.message}"
                    self.tell(ErrorSaid(reason=error.reason.name, message=text))
