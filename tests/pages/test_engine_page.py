"""Every block of docs/engine.md, in order and in one namespace, as it stands."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from support.pages import blocks

pytestmark = [pytest.mark.integration, pytest.mark.timeout(120)]

PAGE = Path(__file__).parents[2] / "docs" / "engine.md"


def test_the_page_runs_and_all_that_it_claims_holds() -> None:
    torch.set_num_threads(1)
    names: dict[str, Any] = {}
    found = blocks(PAGE)
    assert len(found) == 7
    for block in found:
        names = block.run(**names)


def test_a_claim_that_does_not_hold_is_seen() -> None:
    first, second, *_ = blocks(PAGE)
    broken = type(second)(second.title, second.code.replace(" > 1", " <= 1"), second.where)
    with pytest.raises(AssertionError):
        broken.run(**first.run())
