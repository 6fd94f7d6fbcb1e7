"""Each method has a page, with its picture and with the figures that were measured."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from rearview.contract.methods import Method

pytestmark = pytest.mark.unit

DOCS = Path(__file__).parents[2] / "docs"
ROW_OF = {"streamv2v": "feature bank (StreamV2V)", "live2diff": "temporal cache (Live2Diff)"}
"""In the first table of docs/pocket/evaluation.md."""


@pytest.mark.parametrize("method", Method)
def test_it_has_a_page_with_its_picture(method: Method) -> None:
    text = (DOCS / f"{method.value}.md").read_text(encoding="utf-8")
    assert f"](pictures/{method.value}.webp)" in text
    assert f"--method {method.value}" in text


@pytest.mark.parametrize("name", ROW_OF)
def test_what_it_leaves_of_the_flicker_is_what_was_measured(name: str) -> None:
    table = (DOCS / "pocket/evaluation.md").read_text(encoding="utf-8")
    (row,) = re.findall(rf"^\| {re.escape(ROW_OF[name])} \|(.*)$", table, re.MULTILINE)
    fixed, _, fresh, *_ = (cell.strip().removeprefix("x ") for cell in row.split("|"))
    text = " ".join((DOCS / f"{name}.md").read_text(encoding="utf-8").split())
    told = re.search(r"leaves (\S+) of the excess .*? fresh noise and (\S+) under fixed noise", text)
    assert told is not None
    assert told.groups() == (fresh, fixed)
