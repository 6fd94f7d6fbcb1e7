"""rearview: live video translation with diffusion models, as a service.

`rearview.connect` and `rearview.connect_sync` are the way in for programs; see `rearview.client`. Nothing is
imported before one of them is asked for.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from rearview.client.sync import connect_sync
    from rearview.client.translator import connect

__all__ = ["connect", "connect_sync"]

__version__ = "0.1.0"

_HOMES = {"connect": "rearview.client.translator", "connect_sync": "rearview.client.sync"}


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(_HOMES[name]), name)


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
