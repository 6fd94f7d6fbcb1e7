"""How peers that are not on this machine's networks find it: STUN and TURN servers. Values alone."""

from __future__ import annotations

import re
from collections.abc import Collection
from dataclasses import dataclass
from importlib import import_module

from rearview.errors import ConfigError

__all__ = ["Ice", "IceServer", "check_installed"]

_URL = re.compile(r"(stun|turn|turns):[\w.-]+(:\d{1,5})?(\?transport=(udp|tcp))?", re.ASCII)
INSTALL = "pip install 'rearview[webrtc]'"


def check_installed() -> None:
    """Raises ConfigError that says how to install what WebRTC needs, where it is missing."""
    try:
        import_module("aiortc")
    except ImportError as error:
        raise ConfigError(f"--webrtc: {error.name or 'aiortc'} is missing: {INSTALL}") from None


@dataclass(frozen=True, slots=True)
class IceServer:
    """One that tells a peer its address (stun), or carries its packets (turn, turns)."""

    url: str
    username: str | None = None
    password: str | None = None

    @property
    def is_relay(self) -> bool:
        """Whether it carries packets, and wants a login."""
        return self.url.startswith("turn")


@dataclass(frozen=True, slots=True)
class Ice:
    """None at all by default: peers see this machine's own addresses."""

    servers: tuple[IceServer, ...] = ()

    @property
    def links(self) -> list[str]:
        """What the `Link` of an answer tells peers of them; nothing of relays, whose login is not theirs."""
        return [f'<{one.url}>; rel="ice-server"' for one in self.servers if not one.is_relay]

    @classmethod
    def of(cls, urls: Collection[str], turn_login: str | None = None) -> Ice:
        """`turn_login`: `username:password`. Raises ConfigError that names the option to change."""
        username, _, password = (turn_login or "").strip().partition(":")
        servers = []
        for url in urls:
            if not _URL.fullmatch(url):
                raise ConfigError(f"--ice-server {url!r} is none such as stun:HOST:3478 or turn:HOST:3478")
            is_relay = url.startswith("turn")
            if is_relay and not (username and password):
                raise ConfigError("--ice-server turn…: --turn-login FILE has to hold username:password")
            servers.append(IceServer(url, username, password) if is_relay else IceServer(url))
        for is_relay, kind in ((False, "stun"), (True, "turn")):
            if sum(server.is_relay is is_relay for server in servers) > 1:
                raise ConfigError(f"--ice-server: one {kind} server is used, and several were named")
        return cls(tuple(servers))
