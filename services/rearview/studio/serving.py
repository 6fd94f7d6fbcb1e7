"""A studio's ports: plain HTTP on loopback, and, for other machines, TLS with a key in the link."""

from __future__ import annotations

import errno
import socket
import ssl
from collections.abc import AsyncIterator, Collection
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from aiohttp import web

from rearview.errors import ConfigError
from rearview.studio import lan
from rearview.studio.doors import Doors, own_origins
from rearview.studio.folders import PAGE
from rearview.studio.gateway import Gateway
from rearview.studio.server import Studio

if TYPE_CHECKING:
    from rearview.studio.webrtc.endpoints import WebRtc
    from rearview.studio.webrtc.ice import Ice

__all__ = ["Ports", "serve"]

SHUTDOWN_S = 0.5


@dataclass(frozen=True)
class Ports:
    """Bound before anything is started, so that a port that is taken is told at once."""

    local: socket.socket
    lan: socket.socket | None
    key_folder: Path | None
    allowed: tuple[str, ...] = ()
    """Further origins whose pages may open sockets."""

    @classmethod
    def bind(
        cls,
        port: int,
        *,
        key_folder: Path | None = None,
        allowed: Collection[str] = (),
        option: str = "--port",
    ) -> Ports:
        """`key_folder`: where certificate and key stay; None: this machine alone. `option`: which one chooses
        the port. Raises ConfigError that names it.
        """
        own_origins(0, None, (), allowed)
        local = _bind("127.0.0.1", port, option, f"{option} {port}")
        if key_folder is None:
            return cls(local, None, None, tuple(allowed))
        following = port + 1 if port else 0
        try:
            other = _bind("0.0.0.0", following, option, f"{option} {port}: --lan takes {following} too")
        except ConfigError:
            local.close()
            raise
        return cls(local, other, key_folder, tuple(allowed))

    @property
    def url(self) -> str:
        """For this machine."""
        return f"http://127.0.0.1:{self.local.getsockname()[1]}/"


@asynccontextmanager
async def serve(
    gateway: Gateway, ports: Ports, *, page: Path = PAGE, ice: Ice | None = None
) -> AsyncIterator[str | None]:
    """Answer at the ports until the block ends; yields the link for other machines, if there is one. `ice`:
    how WebRTC's peers find each other; None: there is no WHIP and no WHEP.
    """
    hosts, key, link, context = lan.addresses(), None, None, None
    local_port, lan_port = ports.local.getsockname()[1], None
    if ports.lan is not None and ports.key_folder is not None:
        lan_port, key = ports.lan.getsockname()[1], lan.kept_key(ports.key_folder)
        context = lan.tls_context(ports.key_folder, (*hosts, "localhost", "127.0.0.1"))
        link = f"https://{next(iter(hosts), '127.0.0.1')}:{lan_port}/?key={key}"
    doors = Doors(frozenset(own_origins(local_port, lan_port, hosts, ports.allowed)), key)
    qr = lan.qr_svg(link) if link is not None else ""
    studio = Studio(gateway, doors, page=page, lan_url=link, qr=qr, webrtc=_webrtc(gateway, ice))
    runner = web.AppRunner(studio.app(), access_log=None, shutdown_timeout=SHUTDOWN_S)
    await runner.setup()
    try:
        await _listen(runner, ports.local, None)
        if ports.lan is not None:
            await _listen(runner, ports.lan, context)
        yield link
    finally:
        await runner.cleanup()


def _webrtc(gateway: Gateway, ice: Ice | None) -> WebRtc | None:
    if ice is None:
        return None
    from rearview.studio.webrtc.endpoints import WebRtc

    return WebRtc(gateway, ice)


async def _listen(runner: web.AppRunner, port: socket.socket, context: ssl.SSLContext | None) -> None:
    await web.SockSite(runner, port, ssl_context=context).start()


def _bind(host: str, port: int, option: str, chosen: str) -> socket.socket:
    try:
        return socket.create_server((host, port), reuse_port=False)
    except OSError as error:
        if error.errno == errno.EADDRINUSE:
            text = f"{port} is in use; {option} chooses another one, {option} 0 a free one"
            raise ConfigError(f"{chosen}: {text}") from None
        raise ConfigError(f"{chosen}: {error.strerror or error}") from None
