"""The one module that reads the environment."""

from __future__ import annotations

import os

__all__ = ["environment"]


def environment(name: str, default: str = "") -> str:
    """Value of the environment variable `REARVIEW_<name>`, or `default` if it is unset or empty."""
    return os.environ.get(f"REARVIEW_{name}", "") or default
