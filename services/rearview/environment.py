"""The one module that reads the environment."""

from __future__ import annotations

import os

__all__ = ["environment", "pass_on", "variable"]


def variable(name: str) -> str:
    """Of the environment, for what is named `name` here."""
    return f"REARVIEW_{name}"


def environment(name: str, default: str = "") -> str:
    """Value of the environment variable `REARVIEW_<name>`, or `default` if it is unset or empty."""
    return os.environ.get(variable(name), "") or default


def pass_on(name: str, value: str | None) -> None:
    """Set it for this process and for those that it starts from now on; None: unset it."""
    if value is None:
        os.environ.pop(variable(name), None)
    else:
        os.environ[variable(name)] = value
