"""A studio in process, before a whole service in process; and pages that speak to it over real sockets."""

from __future__ import annotations

import asyncio
import json
from collections import defaultdict
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Self

from aiohttp import ClientSession, ClientWebSocketResponse, WSMsgType, web
from pydantic import BaseModel
from rearview.studio.doors import Doors, own_origins
from rearview.studio.gateway import Gateway
from rearview.studio.protocol import FrameIn, PictureOut, frame_out
from rearview.studio.said import text_of
from rearview.studio.server import Studio
from rearview.studio.service import Endpoint
from rearview.studio.serving import _webrtc

__all__ = ["Page", "StudioUnderTest", "studio"]

DEADLINE_S = 30.0


@dataclass
class StudioUnderTest:
    """What a test may look into."""

    gateway: Gateway
    port: int
    http: ClientSession

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def page(self, *, path: str = "/wall", acknowledges: bool = True, **hello: Any) -> Page:
        """One that says `hello` with these fields."""
        return Page(self.http, self.url, hello, path, acknowledges)


@asynccontextmanager
async def studio(
    service: Any, *, doors: Callable[[int], Doors] | None = None, **options: Any
) -> AsyncIterator[StudioUnderTest]:
    """`service`: an address, or what `Gateway` takes. It listens on a free port of loopback. `ice`: with WHIP
    and WHEP.
    """
    start = Endpoint(service) if isinstance(service, str) else service
    page_folder = options.pop("page", None) or Path(__file__).parent
    ice = options.pop("ice", None)
    async with Gateway(start, **options) as gateway, ClientSession() as http:
        runner = web.AppRunner(web.Application(), shutdown_timeout=0.1)
        app_of = Studio(gateway, Doors(frozenset()), page=page_folder, webrtc=_webrtc(gateway, ice))
        runner = web.AppRunner(app_of.app(), shutdown_timeout=0.1)
        await runner.setup()
        site = web.TCPSite(runner, "127.0.0.1", 0)
        await site.start()
        port = runner.addresses[0][1]
        app_of._doors = doors(port) if doors else Doors(frozenset(own_origins(port, None, (), ())))
        try:
            yield StudioUnderTest(gateway, port, http)
        finally:
            await runner.cleanup()


@dataclass
class Page:
    """What a browser's page does, without a browser. It takes what comes as soon as it comes, and says so."""

    http: ClientSession
    url: str
    hello: dict[str, Any]
    path: str = "/wall"
    acknowledges: bool = True
    messages: list[dict[str, Any]] = field(default_factory=list)
    pictures: list[PictureOut] = field(default_factory=list)
    credit: int = 0
    sent: int = 0

    async def __aenter__(self) -> Self:
        await self.connect()
        await self.until("welcome")
        return self

    async def connect(self, origin: str | None = None) -> None:
        self.socket: ClientWebSocketResponse = await self.http.ws_connect(
            self.url + self.path, headers={"Origin": origin or self.url}, max_msg_size=0
        )
        self._changed = asyncio.Event()
        self._reader = asyncio.create_task(self._read())
        await self.say({"type": "hello", **self.hello})

    async def __aexit__(self, *_: object) -> None:
        await self.socket.close()
        await self._reader

    async def say(self, message: dict[str, Any] | BaseModel) -> None:
        text = json.dumps(message) if isinstance(message, dict) else text_of(message)  # type: ignore[arg-type]
        await self.socket.send_str(text)

    async def frame(self, index: int, picture: bytes = b"a frame") -> None:
        """Send one, with credit."""
        await self.wait(lambda: self.sent < self.credit)
        self.sent += 1
        await self.socket.send_bytes(frame_out(FrameIn(index, float(index), picture)))

    async def open(self, tile: int = 0, **options: Any) -> dict[str, Any]:
        """Open a tile and wait until it is."""
        await self.say({"type": "open", "tile": tile, "options": {"settings": {"prompt": "a"}, **options}})
        return await self.until("opened", tile=tile)

    def said(self, kind: str, /, **fields: Any) -> list[dict[str, Any]]:
        """Messages of a kind with these fields, in order."""
        wanted = {"type": kind, **fields}
        return [each for each in self.messages if wanted.items() <= each.items()]

    async def until(self, kind: str, /, count: int = 1, **fields: Any) -> dict[str, Any]:
        """Wait for so many messages of a kind with these fields; the last of them."""
        await self.wait(lambda: len(self.said(kind, **fields)) >= count)
        return self.said(kind, **fields)[count - 1]

    async def wait(self, condition: Callable[[], bool]) -> None:
        try:
            async with asyncio.timeout(DEADLINE_S):
                while not condition():
                    assert not self._reader.done(), f"the socket is closed: {self.messages[-3:]}"
                    await self._changed.wait()
        except TimeoutError:
            raise AssertionError(f"not so within {DEADLINE_S} s: {self.messages[-5:]}") from None

    async def ended(self) -> int | None:
        """Wait until the socket is closed; its code."""
        async with asyncio.timeout(DEADLINE_S):
            await asyncio.shield(self._reader)
        return self.socket.close_code

    def answers(self) -> dict[int, list[int | str]]:
        """Of each tile, the frames that were answered; a dropped one as its reason and number."""
        found: defaultdict[int, list[int | str]] = defaultdict(list)
        for each in self.pictures:
            found[each.tile].append(each.frame)
        return dict(found)

    @property
    def num_answers(self) -> int:
        return len(self.pictures) + len(self.said("dropped"))

    async def _read(self) -> None:
        async for message in self.socket:
            if message.type is WSMsgType.BINARY:
                self.pictures.append(PictureOut.read(message.data))
            elif message.type is WSMsgType.TEXT:
                said = json.loads(message.data)
                self.messages.append(said)
                if said["type"] in ("welcome", "credit"):
                    self.credit = said["credit" if said["type"] == "welcome" else "frames"]
                    self.sent = 0 if said["type"] == "welcome" else self.sent
            if self.acknowledges and self.path == "/wall" and self.num_answers:
                await self.say({"type": "received", "answers": self.num_answers})
            self._changed.set()
            self._changed = asyncio.Event()
        self._changed.set()
