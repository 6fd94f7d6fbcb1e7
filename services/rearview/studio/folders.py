"""Where the page's files are, in a checkout and in what was installed."""

from __future__ import annotations

from pathlib import Path

__all__ = ["CLIENT", "PAGE"]

PAGE = Path(__file__).parent / "page"
_INSTALLED = PAGE / "client"
CLIENT = _INSTALLED if _INSTALLED.is_dir() else Path(__file__).parents[3] / "clients" / "web" / "src"
"""`@rearview/web`, the page's way to the gateway. Served as `static/client`; a wheel has it there."""
