"""The addresses of a service, and the way to the one that is in use.

Every process that serves sessions can go on with any of them, so that an address which fails is left for the
next one. A way that has failed is never taken again: a server that hangs keeps its connections open, and
behind one address there may be several processes, of which a new connection finds another. Calls that still
run over it end by themselves, and its channel with the last of them.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence

import grpc

__all__ = ["DEFAULT_PORT", "Route", "Routes", "addresses_of"]

DEFAULT_PORT = 50051
"""Of an address that names none, as of `rearview up`."""
_RESOLVED = ("unix:", "unix-abstract:", "dns:", "ipv4:", "ipv6:", "vsock:")
"""What gRPC resolves itself."""


def addresses_of(address: str | Sequence[str]) -> tuple[str, ...]:
    """One address, several with commas between them, or a sequence; each with a port. Raises ValueError for
    none, and for what can be no address.
    """
    parts = address.split(",") if isinstance(address, str) else address
    addresses = tuple(_with_port(part.strip()) for part in parts if part.strip())
    if not addresses:
        raise ValueError("no address of the service")
    return addresses


def _with_port(address: str) -> str:
    """ "host", "host:", "::1" and "[::1]" get the default port; gRPC would take 443."""
    if address.startswith(_RESOLVED):
        return address
    if "/" in address:
        raise ValueError(f"{address}: write host:port, without a scheme or a path")
    if address.count(":") > 1 and not address.startswith("["):
        return f"[{address}]:{DEFAULT_PORT}"
    host, _, port = (
        address.rpartition(":") if address.count(":") and not address.endswith("]") else (address, "", "")
    )
    if not host:
        raise ValueError(f"{address}: has no host")
    if port and not (port.isascii() and port.isdigit() and 0 < int(port) < 1 << 16):
        raise ValueError(f"{address}: {port} is no port")
    return f"{host}:{port or DEFAULT_PORT}"


class Route:
    """A channel to one address, for as long as somebody uses it."""

    def __init__(self, address: str, channel: grpc.aio.Channel) -> None:
        self.address, self.channel = address, channel
        self.num_users = 0
        self.has_failed = False


class Routes:
    """The ways to a service. For one event loop."""

    def __init__(self, addresses: Sequence[str], dial: Callable[[str], grpc.aio.Channel]) -> None:
        """`dial` makes a channel, which connects by itself."""
        self._addresses, self._dial = tuple(addresses), dial
        self._at = 0
        """Which address is in use."""
        self._route: Route | None = None
        self._closing: set[asyncio.Task[None]] = set()

    def __len__(self) -> int:
        """How many addresses there are."""
        return len(self._addresses)

    def take(self) -> Route:
        """The way that is in use, until `leave`."""
        if self._route is None:
            address = self._addresses[self._at]
            self._route = Route(address, self._dial(address))
        self._route.num_users += 1
        return self._route

    def leave(self, route: Route, *, failed: bool = False) -> None:
        """One call over it has ended. If it has `failed`, the next call goes to the next address."""
        route.num_users -= 1
        if failed and route is self._route:
            self._at = (self._at + 1) % len(self._addresses)
            self._route, route.has_failed = None, True
        if route.has_failed and not route.num_users:
            task = asyncio.create_task(route.channel.close())
            self._closing.add(task)
            task.add_done_callback(self._closing.discard)

    async def close(self) -> None:
        """Close all that is open."""
        route, self._route = self._route, None
        if route is not None:
            await route.channel.close()
        await asyncio.gather(*self._closing)
