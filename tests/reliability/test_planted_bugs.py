"""Who checks the checker: every planted bug is found by the validator that is named for it."""

from __future__ import annotations

from pathlib import Path

import pytest
from reliability.in_process import chain_config, run_in_process, tokens_end_in

from loadtest.reliability.planted import BUGS, Bug
from loadtest.reliability.validators import Limits, validate

pytestmark = pytest.mark.integration

LIMITS = Limits(refusal_s=0.5, token_s=1.5)
"""On a machine that others use too; what is planted is twice as late."""


async def found(tmp_path: Path, bug: Bug, settle_s: float = 0.3) -> list[tuple[str, str]]:
    run = await run_in_process(bug.plan, chain_config(tmp_path, slots=bug.slots), settle_s=settle_s)
    return [(each.validator, each.text) for each in validate(run, LIMITS)]


@pytest.mark.parametrize("name", BUGS)
async def test_a_planted_bug_is_found_by_its_validator(tmp_path: Path, name: str) -> None:
    bug = BUGS[name]
    with bug.plant():
        seen = await found(tmp_path, bug)
    assert any(validator == bug.validator and bug.text in text for validator, text in seen), seen


@pytest.mark.parametrize(
    "name", ["drop silently", "queue instead of refuse", "answer late", "skip the token"]
)
async def test_nothing_is_found_in_the_same_traffic_without_the_bug(tmp_path: Path, name: str) -> None:
    assert await found(tmp_path, BUGS[name]) == []


async def test_nothing_is_found_where_a_token_ends_its_stream(tmp_path: Path) -> None:
    with tokens_end_in(0.4):
        assert await found(tmp_path, BUGS["skip token expiry"], settle_s=8.0) == []
