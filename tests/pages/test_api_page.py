"""docs/api.md is what the docstrings say."""

from __future__ import annotations

import importlib

import pytest
from pages import api_page

pytestmark = pytest.mark.unit


def test_the_page_is_made_of_the_docstrings_as_they_are() -> None:
    text = api_page.PAGE.read_text(encoding="utf-8")
    assert text == api_page.page(), "run `python tests/pages/api_page.py`"


def test_every_public_name_of_the_client_stands_on_the_page() -> None:
    text = api_page.PAGE.read_text(encoding="utf-8")
    module = importlib.import_module("rearview.client")
    aliases = {"Answer", "Image", "PictureKind", "Token"}  # of types: what they stand for is told
    told = {name for name in module.__all__ if f"### {name}" in text or f"**`{name}(" in text}
    assert set(module.__all__) - aliases - told == set()


def test_a_docstring_that_changes_is_seen(monkeypatch: pytest.MonkeyPatch) -> None:
    from rearview.client import Client

    before = api_page.page()
    monkeypatch.setattr(Client, "__doc__", "Another client.")
    after = api_page.page()
    assert before != after
    assert "Another client." in after
