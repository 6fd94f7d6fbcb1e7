"""Where links are taken, and how a dead peer is found out."""

from __future__ import annotations

import asyncio
import contextlib
import functools
import socket
from dataclasses import dataclass
from pathlib import Path

from rearview.errors import ConfigError
from rearview.machine import short_folder

__all__ = ["Address", "detect_dead_peer", "reachable", "socket_folder"]

SOCKET = "link"
"""Name of the Unix socket in its folder."""
TCP_OPTIONS = {
    "TCP_KEEPIDLE": 5, "TCP_KEEPALIVE": 5, "TCP_KEEPINTVL": 2, "TCP_KEEPCNT": 3, "TCP_USER_TIMEOUT": 10_000
}  # fmt: skip
"""Seconds, the same as macOS calls them, seconds, probes and milliseconds."""


@dataclass(frozen=True, slots=True)
class Address:
    """Where a replica takes links."""

    node: str
    unix_path: str
    host: str
    port: int

    @classmethod
    def parse(cls, text: str) -> Address:
        """Undo `str`."""
        node, unix_path, host, port = text.split("|")
        return cls(node, unix_path, host, int(port))

    def __str__(self) -> str:
        return f"{self.node}|{self.unix_path}|{self.host}|{self.port}"


@functools.cache
def reachable(host: str) -> str:
    """What others dial when this process listens on `host`.

    `host` itself where the machine's name has no address: good for this machine, and for no other.
    """
    if host not in ("0.0.0.0", "::"):
        return host
    with contextlib.suppress(OSError):
        return socket.gethostbyname(socket.gethostname())
    return host


def socket_folder(parent: str | None) -> Path:
    """A new private folder for the Unix socket. Raises ConfigError for a `link.unix_dir` that cannot be."""
    try:
        return short_folder("rearview-", len(f"/{SOCKET}"), parent)
    except OSError as error:
        raise ConfigError(f"link.unix_dir: {error}") from None


def detect_dead_peer(writer: asyncio.StreamWriter) -> None:
    """A node that lost its power sends no goodbye: TCP itself must find out, in seconds."""
    peer = writer.get_extra_info("socket")
    if peer.family not in (socket.AF_INET, socket.AF_INET6):
        return
    peer.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    for name, value in TCP_OPTIONS.items():
        if hasattr(socket, name):  # Not every system has them all.
            peer.setsockopt(socket.IPPROTO_TCP, getattr(socket, name), value)
