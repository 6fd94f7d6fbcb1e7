"""The service as plain processes, and one fault in each run: announced ends, no silence, nothing kept.

`rearview chaos` runs all kinds, many times; these show that runs and their replay work.
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from pathlib import Path

import pytest

from loadtest.reliability.history import What
from loadtest.reliability.runs import RunPlan, perform
from loadtest.reliability.spawner import Spawner

pytestmark = pytest.mark.integration


@pytest.fixture(scope="module")
def spawner() -> Iterator[Spawner]:
    with Spawner() as one:
        yield one


@pytest.mark.parametrize(
    "plan",
    [
        RunPlan(1, "none", topology="fused", seconds=2.0),
        RunPlan(2, "first span killed", seconds=3.0),
        RunPlan(3, "killed after a commit", topology="fused", seconds=3.0),
        RunPlan(4, "ingress killed", seconds=3.0),
    ],
    ids=lambda plan: plan.kind,
)
def test_a_run_finds_nothing_that_breaks_a_promise(tmp_path: Path, spawner: Spawner, plan: RunPlan) -> None:
    outcome = asyncio.run(perform(plan, tmp_path, spawner))
    assert [str(violation) for violation in outcome.violations] == []
    assert outcome.run.count(What.RESULT) > 50
    assert bool(outcome.run.faults) == (plan.kind != "none")
