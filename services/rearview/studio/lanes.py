"""What a page may see and do to the replicas of a service of this machine: lanes drawn, one killed."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Protocol

from rearview.studio.said import Lanes

__all__ = ["LocalLanes", "Replica", "Span", "lanes_said"]


class Replica(Protocol):
    """Whoever serves a place of a span."""

    @property
    def id(self) -> str:
        """Of no other before or after it."""

    @property
    def state(self) -> str:
        """`up`, `starting` or `down`."""

    @property
    def sessions(self) -> Sequence[str]:
        """Ids of those that it holds."""


class Span(Protocol):
    """A span and who serves it."""

    @property
    def name(self) -> str:
        """As in the configuration."""

    @property
    def replicas(self) -> Sequence[Replica]:
        """In a fixed order."""


class LocalLanes(Protocol):
    """A service of this machine. Both may block: they are called in threads."""

    def lanes(self) -> Sequence[Span]:
        """Who there is; nothing while it starts."""

    def kill(self, span_name: str) -> str:
        """End a replica of the span at once, as a fault would; its id. Raises NotFound."""


def lanes_said(spans: Sequence[Span], tiles: Mapping[str, int]) -> Lanes:
    """As a wall's page is told; `tiles` by the id of their session. Of other walls it hears the number."""
    return Lanes(
        spans=[
            {
                "name": span.name,
                "replicas": [
                    {
                        "id": one.id,
                        "state": one.state,
                        "sessions": len(one.sessions),
                        "tiles": sorted(tiles[session] for session in one.sessions if session in tiles),
                    }
                    for one in span.replicas
                ],
            }
            for span in spans
        ]
    )
