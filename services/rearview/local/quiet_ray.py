"""Ray without its running commentary: what it says of itself is for whoever runs a cluster of it."""

from __future__ import annotations

import logging

__all__ = ["quiet_ray"]


def quiet_ray() -> None:
    """Let this process's Ray tell errors alone. Call it before `ray.init`."""
    import ray.serve  # It sets its logger's level.

    for library in ("ray", ray.serve.__name__):
        logging.getLogger(library).setLevel(logging.ERROR)
