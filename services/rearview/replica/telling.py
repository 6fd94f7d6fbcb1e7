"""What placement must know of a replica, told to whoever has dialled it: when it has changed, and now and
then.

So nobody needs to ask, and an ingress with many replicas hears of the few that have changed.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from rearview.transport.links import LinkServer
from rearview.transport.wire import Kind, encode_json

__all__ = ["AGAIN_BEATS", "Telling"]

AGAIN_BEATS = 25
"""What has not changed is told again after so many beats: for who dialled since, or has doubted it."""
OF_SESSIONS = frozenset({"sessions", "orphans", "frames_by_session", "leases"})
"""What a description says of each session; they are asked for."""


class Telling:
    """Of one replica. For one event loop."""

    def __init__(self, server: LinkServer, describe: Callable[[], Mapping[str, Any]]) -> None:
        """Of the replica that takes links at `server`. `describe`: see `Stage.describe`."""
        self._server, self._describe = server, describe
        self._told, self._beats = b"", 0

    def beat(self) -> None:
        """Tell what has changed since the beat before."""
        described = self._describe()
        now = encode_json({name: each for name, each in described.items() if name not in OF_SESSIONS})
        self._beats += 1
        if now != self._told or self._beats >= AGAIN_BEATS:
            self._told, self._beats = now, 0
            self._server.broadcast(Kind.CAPACITY, now)
