"""WHIP and WHEP over HTTP: who may send and watch under which name, and how each of them ends.

    POST   /whip/NAME             an offer that sends video: 201, the answer, a Location
    POST   /whip/NAME/settings    changes the settings of that camera's session
    POST   /whep/NAME-or-KEY      an offer that takes video: 201, the answer, a Location
    DELETE at a Location          ends it; a camera's wall with it

A name belongs to a token. Who sends under it again, with that token, comes back to its wall, also while the
former connection is not known to be dead: watchers go on.
"""

from __future__ import annotations

import asyncio
import json
import logging
import secrets
from collections.abc import AsyncIterator, Awaitable, Mapping, Sequence
from contextlib import AsyncExitStack, suppress
from dataclasses import dataclass, field
from weakref import WeakValueDictionary

from aiohttp import hdrs, web
from aiortc import MediaStreamTrack
from aiortc.mediastreams import MediaStreamError
from av import VideoFrame

from rearview.contract.opening import OpenRequest
from rearview.contract.stream import DropPolicy
from rearview.errors import InvalidRequest, NotFound, Reason, Refused
from rearview.studio.camera import TILE, Camera
from rearview.studio.gateway import Gateway
from rearview.studio.http_calls import bearer, body_text, refusing
from rearview.studio.protocol import Control, Hello, Open, read_message
from rearview.studio.secrecy import same_secret
from rearview.studio.wall import Wall
from rearview.studio.webrtc.ice import Ice
from rearview.studio.webrtc.peers import Peer
from rearview.studio.webrtc.show import Show

__all__ = ["WebRtc"]

logger = logging.getLogger(__name__)

MAX_PEERS = 64
SDP = "application/sdp"
NAME = "{name:[A-Za-z0-9_-]{1,64}}"


@dataclass(eq=False)
class _Stream:
    """A camera under its name; what is left of it once it is gone leads back to its wall."""

    name: str
    token: str | None
    wall: Wall
    camera: Camera
    peer: Peer
    id: str = field(default_factory=lambda: secrets.token_urlsafe(18))

    async def end(self) -> None:
        """The camera goes; its wall has its grace time."""
        await self.peer.close()
        await self.camera.close()


@dataclass(eq=False)
class _Watcher:
    show: Show
    peer: Peer
    id: str = field(default_factory=lambda: secrets.token_urlsafe(18))

    async def end(self) -> None:
        self.show.leave()
        await self.peer.close()


class WebRtc:
    """For one event loop. `close` ends every peer."""

    def __init__(self, gateway: Gateway, ice: Ice) -> None:
        self._gateway, self._ice = gateway, ice
        self._streams: list[_Stream] = []
        self._turns: WeakValueDictionary[tuple[str, str | None], asyncio.Lock] = WeakValueDictionary()
        """By name and token: one camera at a time takes the place of the one before."""
        self._watchers: dict[str, _Watcher] = {}
        self._peers: list[Peer] = []
        """Of them all, also while they are being answered."""
        self._tasks: set[asyncio.Task[None]] = set()

    def add_routes(self, app: web.Application) -> None:
        """Whoever serves `app` has checked where a request comes from."""
        add = app.router.add_route
        add("POST", f"/whip/{NAME}", self._publish)
        add("POST", f"/whip/{NAME}/settings", self._change)
        add("DELETE", f"/whip/{NAME}/{{id}}", self._unpublish)
        add("POST", f"/whep/{NAME}", self._watch)
        add("DELETE", f"/whep/{NAME}/{{id}}", self._unwatch)
        for path in ("", "/settings", "/{id}"):
            for door in ("whip", "whep"):
                add("OPTIONS", f"/{door}/{NAME}{path}", _options)
        app.on_shutdown.append(self._shut_down)

    async def close(self) -> None:
        """End every peer; walls are the gateway's."""
        ends = [each.end() for each in self._streams]
        ends += [each.end() for each in self._watchers.values()]
        await asyncio.gather(*ends, *self._tasks, return_exceptions=True)

    async def _shut_down(self, app: web.Application) -> None:
        await self.close()

    # -- cameras

    @refusing
    async def _publish(self, request: web.Request) -> web.Response:
        name, token, options = request.match_info["name"], bearer(request), _asked(request.query)
        offer, peer = await self._offer(request)
        try:
            answer, track = await peer.receive(offer)
            stream = await self._enter(name, token, options, peer)
        except BaseException:
            await peer.close()
            raise
        stream.camera.show(_frames(track))
        self._keep(self._follow(stream))
        links = [f'</whep/{stream.wall.viewer_key}>; rel="alternate"', *self._ice.links]
        return _created(f"/whip/{name}/{stream.id}", answer, links)

    async def _enter(self, name: str, token: str | None, options: OpenRequest, peer: Peer) -> _Stream:
        """A wall for a camera, with its session: the one that the name has, else a new one."""
        async with self._turns.setdefault((name, token), asyncio.Lock()):
            former = self._named(name, token)
            if former is not None:
                self._streams.remove(former)
                await former.end()
            wall, resumed = self._gateway.enter(Hello(token=token, wall=former.wall.key if former else None))
            camera = Camera(wall, options, resumed=resumed)
            stream = _Stream(name, token, wall, camera, peer)
            self._streams.append(stream)
        try:
            await camera.opened()
        except BaseException:
            await camera.close()
            if not resumed and stream in self._streams:
                self._streams.remove(stream)
                self._gateway.leave(wall)
            raise
        return stream

    @refusing
    async def _change(self, request: web.Request) -> web.Response:
        stream = self._named(request.match_info["name"], bearer(request))
        if stream is None or stream.peer.ended.is_set():
            raise NotFound(Reason.SESSION_UNKNOWN, "no camera of this name and token is there")
        asked = _read({"type": "control", "tile": TILE, "id": 0, "settings": _json(await body_text(request))})
        assert isinstance(asked, Control)
        return web.json_response(await stream.camera.change(asked.settings))

    @refusing
    async def _unpublish(self, request: web.Request) -> web.Response:
        for stream in self._streams:
            is_it = stream.name == request.match_info["name"]
            if is_it and same_secret(stream.id, request.match_info["id"]):
                self._streams.remove(stream)
                await stream.end()
                self._gateway.leave(stream.wall)
                return web.Response()
        raise NotFound(Reason.SESSION_UNKNOWN, "there is no such resource any more")

    async def _follow(self, stream: _Stream) -> None:
        await _first_of(stream.peer.ended, stream.camera.over)
        await stream.end()

    def _named(self, name: str, token: str | None) -> _Stream | None:
        self._streams = [one for one in self._streams if self._gateway.watched(one.wall.viewer_key)]
        for stream in self._streams:
            if stream.name == name and same_secret(stream.token, token):
                return stream
        return None

    # -- watchers

    @refusing
    async def _watch(self, request: web.Request) -> web.Response:
        name = request.match_info["name"]
        wall = self._gateway.watched(name)
        if wall is None:
            stream = self._named(name, bearer(request))
            if stream is None:
                raise NotFound(Reason.SESSION_UNKNOWN, "nothing is shown under this name and token")
            wall = stream.wall
        offer, peer = await self._offer(request)
        async with AsyncExitStack() as unless_answered:
            unless_answered.push_async_callback(peer.close)
            watcher = _Watcher(Show(wall), peer)
            unless_answered.callback(watcher.show.leave)
            answer = await peer.send(offer, watcher.show)
            unless_answered.pop_all()
        self._watchers[watcher.id] = watcher
        self._keep(self._look_on(watcher))
        return _created(f"/whep/{name}/{watcher.id}", answer, self._ice.links)

    @refusing
    async def _unwatch(self, request: web.Request) -> web.Response:
        watcher = self._watchers.get(request.match_info["id"])
        if watcher is None:
            raise NotFound(Reason.SESSION_UNKNOWN, "there is no such resource any more")
        await watcher.end()
        return web.Response()

    async def _look_on(self, watcher: _Watcher) -> None:
        await _first_of(watcher.peer.ended, watcher.show.over)
        await watcher.end()
        del self._watchers[watcher.id]

    # -- how

    async def _offer(self, request: web.Request) -> tuple[str, Peer]:
        """The offer that a request brings, and a peer to answer it. Raises RearviewError if there is none."""
        if request.content_type != SDP:
            raise web.HTTPUnsupportedMediaType(text=f"the body of an offer is {SDP}\n")
        offer = await body_text(request)
        self._peers = [each for each in self._peers if not each.ended.is_set()]
        if len(self._peers) >= MAX_PEERS:
            raise Refused(Reason.NO_CAPACITY, f"the studio has {MAX_PEERS} peers", retry_after_s=10.0)
        peer = Peer(self._ice)
        self._peers.append(peer)
        return offer, peer

    def _keep(self, work: Awaitable[None]) -> None:
        task = asyncio.ensure_future(work)
        self._tasks.add(task)
        task.add_done_callback(self._done)

    def _done(self, task: asyncio.Task[None]) -> None:
        self._tasks.discard(task)
        if not task.cancelled() and (failure := task.exception()) is not None:
            logger.error("a WebRTC peer failed: %s", type(failure).__name__, exc_info=failure)


async def _frames(track: MediaStreamTrack) -> AsyncIterator[VideoFrame]:
    """Those of a track, to its end."""
    with suppress(MediaStreamError):
        while True:
            yield await track.recv()


async def _options(request: web.Request) -> web.Response:
    return web.Response(status=204)


def _created(location: str, answer: str, links: Sequence[str]) -> web.Response:
    headers = {hdrs.LOCATION: location, hdrs.CACHE_CONTROL: "no-store"}
    if links:
        headers[hdrs.LINK] = ", ".join(links)
    return web.Response(status=201, text=answer, content_type=SDP, headers=headers)


def _asked(query: Mapping[str, str]) -> OpenRequest:
    """The session that a query asks for: `options`, as a page's `open` has them, and `prompt` for short."""
    unknown = set(query) - {"options", "prompt", "key"}
    if unknown:
        raise InvalidRequest(Reason.MESSAGE_INVALID, "of the query prompt, options and key are known")
    options = _json(query.get("options", "{}"))
    if "prompt" in query:
        settings = options.setdefault("settings", {})
        if isinstance(settings, dict):
            settings["prompt"] = query["prompt"]
    asked = _read({"type": "open", "tile": TILE, "options": options})
    assert isinstance(asked, Open)
    if asked.options.drop_policy is DropPolicy.LOSSLESS:
        raise InvalidRequest(Reason.SETTING_OUT_OF_RANGE, "drop_policy: a camera is live, never lossless")
    return asked.options


def _json(text: str) -> dict[str, object]:
    try:
        content = json.loads(text)
    except (ValueError, RecursionError):
        content = None
    if not isinstance(content, dict):
        raise InvalidRequest(Reason.MESSAGE_INVALID, "a JSON object is read, and this is none")
    return content


def _read(content: Mapping[str, object]) -> object:
    return read_message(json.dumps(content))


async def _first_of(*events: asyncio.Event) -> None:
    """Return when one of them is set."""
    waits = [asyncio.ensure_future(event.wait()) for event in events]
    try:
        await asyncio.wait(waits, return_when=asyncio.FIRST_COMPLETED)
    finally:
        for wait in waits:
            wait.cancel()
