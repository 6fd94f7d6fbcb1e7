"""Two hosts and the cable between them: cut, and slow. Network namespaces where there may be some."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from pathlib import Path

import pytest

from loadtest.reliability import runs
from loadtest.reliability.history import What
from loadtest.reliability.runs import RunPlan, perform
from loadtest.reliability.spawner import Spawner

pytestmark = pytest.mark.load


@pytest.fixture(scope="module")
def spawner() -> Iterator[Spawner]:
    with Spawner() as one:
        yield one


@pytest.mark.parametrize("kind", ["hosts cut off", "slow network between hosts"])
def test_sessions_outlive_what_happens_to_the_network_between_two_hosts(
    tmp_path: Path, spawner: Spawner, kind: str
) -> None:
    outcome = asyncio.run(perform(RunPlan(5, kind, streams=6, seconds=7.0), tmp_path, spawner))
    assert [str(violation) for violation in outcome.violations] == []
    assert outcome.run.count(What.RESULT) > 100
    (fault,) = outcome.run.faults
    assert fault.until_s is not None


def test_relays_stand_for_the_network_where_there_are_no_namespaces(
    tmp_path: Path, spawner: Spawner, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(runs, "can_have_namespaces", lambda: False)
    outcome = asyncio.run(perform(RunPlan(6, "hosts cut off", streams=4, seconds=6.0), tmp_path, spawner))
    assert [str(violation) for violation in outcome.violations] == []
    assert outcome.run.count(What.RESULT) > 50
