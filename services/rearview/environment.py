"""The one module that reads the environment."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Mapping
from pathlib import Path

__all__ = [
    "become",
    "cache_folder",
    "environment",
    "everything",
    "keep_compiled",
    "pass_on",
    "variable",
    "visible_gpus",
]


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


def everything() -> Mapping[str, str]:
    """All variables of this process."""
    return dict(os.environ)


def become(variables: Mapping[str, str]) -> None:
    """Let this process have these variables and no others."""
    os.environ.clear()
    os.environ.update(variables)


def visible_gpus() -> str:
    """Numbers of the node's GPUs that this process may use, separated by commas: the first is `cuda` to it.
    Ray chooses them for a replica that reserves any. Empty: nobody has chosen.
    """
    return os.environ.get("CUDA_VISIBLE_DEVICES", "")


def cache_folder() -> Path | None:
    """Where what can be made again is kept from start to start: `REARVIEW_CACHE`, else in the user's own;
    None for a user without a home.
    """
    if chosen := environment("CACHE"):
        return Path(chosen)
    if home := os.environ.get("XDG_CACHE_HOME"):
        return Path(home) / "rearview"
    try:
        return Path.home() / ".cache" / "rearview"
    except RuntimeError:
        return None


def keep_compiled() -> None:
    """Let torch keep what it compiles in the cache folder, in this process and those that it starts: it makes
    a folder as soon as it is imported, which else stays behind among temporary files.
    """
    place = cache_folder()
    if place is None or "TORCHINDUCTOR_CACHE_DIR" in os.environ:
        return
    compiled = place / "compiled"
    with contextlib.suppress(OSError):  # Torch would fail where it cannot make one.
        compiled.mkdir(parents=True, exist_ok=True)
        os.environ["TORCHINDUCTOR_CACHE_DIR"] = str(compiled)
