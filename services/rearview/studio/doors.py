"""Who may come in: pages of this gateway's own origins, and, from other machines, those that show its key."""

from __future__ import annotations

import ipaddress
from collections.abc import Collection
from dataclasses import dataclass, field
from urllib.parse import urlsplit

from rearview.errors import ConfigError
from rearview.studio.secrecy import same_secret

__all__ = ["Doors", "is_loopback", "origin_of", "own_origins"]

_PORTS = {"http": 80, "https": 443}


@dataclass(frozen=True)
class Doors:
    """By values alone."""

    origins: frozenset[str]
    """`scheme://host:port` of pages that may open sockets."""
    hosts: frozenset[str] = field(init=False)
    """`host:port` by which requests may call the gateway: another name is a rebound one."""
    key: str | None = None
    """What requests from other machines must show, in a cookie; None: there are none."""

    def __post_init__(self) -> None:
        object.__setattr__(self, "hosts", frozenset(origin.partition("://")[2] for origin in self.origins))

    def knows_origin(self, origin: str | None) -> bool:
        """Whether a socket may be opened by a page of this origin; one that names none is no page's."""
        if origin is None:
            return False
        try:
            return origin_of(origin) in self.origins
        except ConfigError:
            return False

    def knows_host(self, host: str) -> bool:
        """Whether a request means this gateway. Without a port `host` may mean either default one: a proxy
        with TLS passes on the name alone.
        """
        try:
            return any(origin_of(f"{each}://{host}").partition("://")[2] in self.hosts for each in _PORTS)
        except ConfigError:
            return False

    def admits(self, remote: str | None, shown: str | None) -> bool:
        """Whether a peer may see more than a viewer's page: it is on this machine, or shows the key."""
        return is_loopback(remote) or (self.key is not None and same_secret(self.key, shown))


def origin_of(text: str) -> str:
    """`scheme://host:port`, in lower case. Raises ConfigError for what is no origin."""
    try:
        parts = urlsplit(text.strip().lower())
        port = parts.port or _PORTS[parts.scheme]
    except (ValueError, KeyError):
        raise ConfigError(f"{text!r} is no origin such as https://studio.example") from None
    if not parts.hostname or parts.path not in ("", "/") or parts.query or parts.username:
        raise ConfigError(f"{text!r} is no origin such as https://studio.example")
    host = f"[{parts.hostname}]" if ":" in parts.hostname else parts.hostname
    return f"{parts.scheme}://{host}:{port}"


def own_origins(
    port: int, lan_port: int | None, addresses: Collection[str], more: Collection[str]
) -> Collection[str]:
    """Those of a gateway at these ports. Raises ConfigError."""
    loopback = {f"http://{host}:{port}" for host in ("127.0.0.1", "localhost", "[::1]")}
    lan = set()
    if lan_port is not None:
        lan = {f"https://{host}:{lan_port}" for host in (*addresses, "127.0.0.1", "localhost")}
    return {origin_of(each) for each in (*loopback, *lan, *more)}


def is_loopback(remote: str | None) -> bool:
    """Whether a peer's address is of this machine."""
    try:
        address = ipaddress.ip_address(remote or "")
    except ValueError:
        return False
    mapped = getattr(address, "ipv4_mapped", None)
    return bool((mapped or address).is_loopback)
