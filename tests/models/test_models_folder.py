"""Where fetched models lie, for users of every kind."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from rearview.models import models_folder

pytestmark = pytest.mark.unit

HERE = Path(".rearview/models")


@pytest.mark.parametrize(
    ("variables", "wanted"),
    [
        ({"REARVIEW_MODELS": "/m", "REARVIEW_CACHE": "/c", "HOME": "/h"}, Path("/m")),
        ({"REARVIEW_CACHE": "/c", "XDG_CACHE_HOME": "/x", "HOME": "/h"}, Path("/c/models")),
        ({"XDG_CACHE_HOME": "/x", "HOME": "/h"}, Path("/x/rearview/models")),
        ({"HOME": "/h"}, Path("/h/.cache/rearview/models")),
    ],
)
def test_the_most_special_variable_says_where_models_lie(
    monkeypatch: pytest.MonkeyPatch, variables: dict[str, str], wanted: Path
) -> None:
    for name in ("REARVIEW_MODELS", "REARVIEW_CACHE", "XDG_CACHE_HOME"):
        monkeypatch.delenv(name, raising=False)
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    assert models_folder() == wanted


def test_a_user_without_a_home_has_them_where_they_work(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("REARVIEW_MODELS", "REARVIEW_CACHE", "XDG_CACHE_HOME", "HOME"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(os, "getuid", lambda: 123_456_789)
    assert models_folder() == HERE
