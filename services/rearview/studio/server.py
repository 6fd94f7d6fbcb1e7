"""The studio's HTTP: the page and its files, what it must know, and the sockets of walls and viewers."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING

from aiohttp import hdrs, web
from yarl import URL

from rearview.samples import sample_clip_path
from rearview.studio.conversation import converse, watch
from rearview.studio.doors import Doors, is_loopback
from rearview.studio.folders import CLIENT, PAGE
from rearview.studio.gateway import Gateway
from rearview.studio.lan import qr_svg
from rearview.studio.minting import mint
from rearview.studio.protocol import MAX_FRAME_BYTES

if TYPE_CHECKING:
    from rearview.studio.webrtc.endpoints import WebRtc

__all__ = ["Studio"]

COOKIE = "rearview-studio"
MAX_SOCKETS = 256
MAX_STRANGERS = 32
"""Of those, at `/session`, that have shown no token yet."""
HEARTBEAT_S = 15.0
"""How soon a peer that is gone without a word is noticed."""
HEADERS = {
    "Content-Security-Policy": (
        "default-src 'self'; img-src 'self' blob: data:; media-src 'self' blob: data:; "
        "worker-src 'self' blob:; connect-src 'self'; style-src 'self'; object-src 'none'; "
        "base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
    ),
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Permissions-Policy": "camera=(self), display-capture=(self), microphone=()",
    "Referrer-Policy": "no-referrer",
    "X-Content-Type-Options": "nosniff",
}
CORS = {
    "Access-Control-Allow-Headers": "authorization, content-type",
    "Access-Control-Allow-Methods": "POST, DELETE",
    "Access-Control-Expose-Headers": "Location, Link, Retry-After",
    "Vary": "Origin",
}

FOR_ALL_PAGES = {"Access-Control-Allow-Origin": "*", "Cross-Origin-Resource-Policy": "cross-origin"}
"""`@rearview/web` may be imported from here by any page: it holds no secret."""

Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]


class Studio:
    """What requests are answered with. `app` is served by whoever listens."""

    def __init__(
        self,
        gateway: Gateway,
        doors: Doors,
        *,
        page: Path = PAGE,
        lan_url: str | None = None,
        qr: str = "",
        webrtc: WebRtc | None = None,
    ) -> None:
        """`lan_url` and `qr`, an SVG of it, are for pages that were let in. `webrtc`: WHIP and WHEP."""
        self._gateway, self._doors, self._page, self._webrtc = gateway, doors, page, webrtc
        self._lan_url, self._qr = lan_url, qr
        self._num_sockets = self._num_strangers = 0

    def app(self) -> web.Application:
        """For one server."""
        app = web.Application(middlewares=[self._guard], client_max_size=1 << 16)
        app.router.add_get("/", self._index)
        app.router.add_get("/api/info", self._info)
        app.router.add_get("/api/qr.svg", self._qr_svg)
        app.router.add_get("/sample.mp4", self._sample)
        app.router.add_get("/wall", self._wall)
        app.router.add_get("/session", self._session)
        app.router.add_post("/api/tokens", self._tokens)
        app.router.add_get("/view/{key}", self._view)
        app.router.add_get("/view/{key}/feed", self._feed)
        app.router.add_static("/static/client/", CLIENT)
        app.router.add_static("/static/", self._page, append_version=False)
        if self._webrtc is not None:
            self._webrtc.add_routes(app)
        else:
            for path in ("/whip/{rest:.*}", "/whep/{rest:.*}"):
                app.router.add_route("*", path, self._no_webrtc)
        app.on_response_prepare.append(_add_headers)
        return app

    @web.middleware
    async def _guard(self, request: web.Request, handler: Handler) -> web.StreamResponse:
        """Refuse another name for this gateway, and, from elsewhere, who shows no key."""
        doors = self._doors
        if not doors.knows_host(request.host):
            raise web.HTTPForbidden(text="this name is not the studio's: see --allow-origin\n")
        if request.path.startswith(("/static/", "/view/")) or request.path in ("/session", "/api/tokens"):
            return await handler(request)  # without secrets, or with one of its own
        if request.path.startswith(("/whip/", "/whep/")):
            return await self._guard_peer(request, handler)
        shown = request.query.get("key")
        if request.path == "/" and shown is not None and doors.admits(None, shown):
            welcome = web.HTTPFound("/")
            welcome.set_cookie(
                COOKIE, shown, httponly=True, samesite="Strict", secure=request.secure, max_age=7 * 86_400
            )
            raise welcome
        if not doors.admits(request.remote, request.cookies.get(COOKIE)):
            raise web.HTTPForbidden(text="open the link that the studio has printed\n")
        return await handler(request)

    async def _guard_peer(self, request: web.Request, handler: Handler) -> web.StreamResponse:
        """The same for WHIP and WHEP, whose clients keep no cookies, and may be pages of other origins."""
        origin = self._check_origin(request)
        readable = {} if origin is None else {hdrs.ACCESS_CONTROL_ALLOW_ORIGIN: origin, **CORS}
        try:
            self._check_peer(request)
            response = await handler(request)
        except web.HTTPException as refused:
            refused.headers.update(readable)
            raise
        response.headers.update(readable)
        return response

    def _check_peer(self, request: web.Request) -> None:
        shown = request.query.get("key", request.cookies.get(COOKIE))
        # The path of a resource is enough to end it: its id is a secret, told to its sender alone.
        is_free = request.method in (hdrs.METH_OPTIONS, hdrs.METH_DELETE) or (
            request.path.startswith("/whep/")
            and self._gateway.watched(request.path.split("/")[2]) is not None
        )
        if not (is_free or self._doors.admits(request.remote, shown)):
            raise web.HTTPForbidden(text="add ?key=, as in the link that the studio has printed\n")

    def _check_origin(self, request: web.Request, *, is_page: bool = False) -> str | None:
        """The origin of the page that asks; None: no page does. Raises HTTPForbidden for a page of another
        origin than the studio's, and, if only a page may ask (`is_page`), for none.
        """
        origin = request.headers.get(hdrs.ORIGIN)
        if (is_page or origin is not None) and not self._doors.knows_origin(origin):
            raise web.HTTPForbidden(text="this page is not the studio's: see --allow-origin\n")
        return origin

    async def _no_webrtc(self, request: web.Request) -> web.StreamResponse:
        raise web.HTTPNotFound(text="start the studio with --webrtc\n")

    async def _index(self, request: web.Request) -> web.StreamResponse:
        return self._file("index.html")

    async def _info(self, request: web.Request) -> web.StreamResponse:
        content = self._gateway.info(secure=request.secure, lan=self._lan_url)
        content["sample"] = str(sample_clip_path()) if is_loopback(request.remote) else None
        return web.json_response(content, headers={"Cache-Control": "no-store"})

    async def _qr_svg(self, request: web.Request) -> web.StreamResponse:
        """Of the link for other machines; with `view`, of a program's."""
        view, code = request.query.get("view"), self._qr
        if view is not None:
            own = URL(self._lan_url) if self._lan_url else request.url
            code = qr_svg(str(own.with_path(f"/view/{view}"))) if self._gateway.watched(view) else ""
        if not code:
            raise web.HTTPNotFound
        return web.Response(text=code, content_type="image/svg+xml", headers={"Cache-Control": "no-store"})

    async def _sample(self, request: web.Request) -> web.StreamResponse:
        return web.FileResponse(sample_clip_path())

    async def _view(self, request: web.Request) -> web.StreamResponse:
        if self._gateway.watched(request.match_info["key"]) is None:
            raise web.HTTPNotFound(text="this program is over\n")
        return self._file("view.html")

    async def _wall(self, request: web.Request) -> web.StreamResponse:
        async def talk(socket: web.WebSocketResponse) -> None:
            gateway = self._gateway
            await converse(gateway, gateway.enter, socket, is_local=is_loopback(request.remote))

        return await self._socket(request, 2 * MAX_FRAME_BYTES, talk)

    async def _session(self, request: web.Request) -> web.StreamResponse:
        if self._num_strangers >= MAX_STRANGERS:
            raise web.HTTPServiceUnavailable(text="too many sockets without a token\n")
        self._num_strangers += 1
        with ExitStack() as strange:
            strange.callback(self._one_stranger_less)

            async def talk(socket: web.WebSocketResponse) -> None:
                enter = self._gateway.sessions.enter
                await converse(self._gateway, enter, socket, is_local=False, on_entered=strange.close)

            return await self._socket(request, 2 * MAX_FRAME_BYTES, talk)

    def _one_stranger_less(self) -> None:
        self._num_strangers -= 1

    async def _tokens(self, request: web.Request) -> web.StreamResponse:
        self._check_origin(request)
        is_known = self._doors.admits(request.remote, request.cookies.get(COOKIE))
        return await mint(self._gateway.sessions, request, is_known=is_known)

    async def _feed(self, request: web.Request) -> web.StreamResponse:
        wall = self._gateway.watched(request.match_info["key"])
        if wall is None:
            raise web.HTTPNotFound(text="this program is over\n")
        return await self._socket(request, 1024, lambda socket: watch(wall, socket))

    async def _socket(
        self, request: web.Request, largest: int, talk: Callable[[web.WebSocketResponse], Awaitable[None]]
    ) -> web.StreamResponse:
        self._check_origin(request, is_page=True)
        if self._num_sockets >= MAX_SOCKETS:
            raise web.HTTPServiceUnavailable(text="too many sockets\n")
        # Pictures are compressed already.
        socket = web.WebSocketResponse(max_msg_size=largest, heartbeat=HEARTBEAT_S, compress=False)
        self._num_sockets += 1
        try:
            await socket.prepare(request)
            await talk(socket)
        finally:
            self._num_sockets -= 1
        return socket

    def _file(self, name: str) -> web.FileResponse:
        return web.FileResponse(self._page / name, headers={"Cache-Control": "no-cache"})


async def _add_headers(request: web.Request, response: web.StreamResponse) -> None:
    response.headers.update(HEADERS)
    if request.path.startswith("/static/client/"):
        response.headers.update(FOR_ALL_PAGES)
    if request.path.startswith("/static/"):
        response.headers["Cache-Control"] = "no-cache"
