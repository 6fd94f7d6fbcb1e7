"""How modules of tests are dealt out to workers, two of which run at a time."""

from __future__ import annotations

from xdist.scheduler import LoadFileScheduling

__all__ = ["OneRay", "starts_ray"]

RAY = ("tests/integration/test_serve_", "tests/cli/test_cli_up.py")


def starts_ray(nodeid: str) -> bool:
    """Whether it waits for a Ray of its own."""
    return nodeid.startswith(RAY)


class OneRay(LoadFileScheduling):
    """A module stays with one worker, and so do all those that start Ray: two that start at once on two cores
    would keep each other, and whatever else is tested, from being there in time.
    """

    def _split_scope(self, nodeid: str) -> str:
        return "Ray" if starts_ray(nodeid) else super()._split_scope(nodeid)
