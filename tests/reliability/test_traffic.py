"""Mixed traffic against the service in this process: validators find nothing where nothing is wrong."""

from __future__ import annotations

from pathlib import Path

import pytest
from reliability.in_process import OPERATORS, PIPELINE, chain_config, events_of, run_in_process

from loadtest.reliability.ends import ENDS, schedule
from loadtest.reliability.history import What
from loadtest.reliability.plan import make_plan
from loadtest.reliability.validators import validate

pytestmark = pytest.mark.integration


@pytest.mark.parametrize("spans", [(OPERATORS,), PIPELINE], ids=["fused", "pipeline"])
async def test_nothing_is_found_where_nothing_is_wrong(
    tmp_path: Path, spans: tuple[tuple[str, ...], ...]
) -> None:
    plan = make_plan(seed=len(spans), streams=9, seconds=1.5)
    run = await run_in_process(plan, chain_config(tmp_path, spans=spans))
    assert [str(violation) for violation in validate(run)] == []
    assert run.count(What.RESULT) > 100
    assert {event.stream for event in events_of(run, What.ENDED)} >= {"alpha/0"}
    assert [event.data["reason"] for event in events_of(run, What.REFUSED)] == ["TOKEN_INVALID"]


def test_every_end_has_its_turn() -> None:
    assert set(schedule(len(ENDS))) == set(ENDS)
    assert schedule(1000).count("drained") == 14
