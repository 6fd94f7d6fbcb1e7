"""What to do where a tool or data is missing."""

from __future__ import annotations

import os
from typing import NoReturn

import pytest

__all__ = ["skip_or_fail"]


def skip_or_fail(reason: str) -> NoReturn:
    """Skip the test; with REARVIEW_REQUIRE_TOOLS=1, as in CI, it fails instead."""
    if os.environ.get("REARVIEW_REQUIRE_TOOLS") == "1":
        pytest.fail(f"{reason} (REARVIEW_REQUIRE_TOOLS=1)")
    pytest.skip(reason)
