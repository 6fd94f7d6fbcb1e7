"""The campaigns at their smallest: blows again and again, pictures after a kill, sessions with all ends."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path

import pytest

from loadtest.reliability import calm, leaks, pocket, repeated
from loadtest.reliability.ends import ENDS
from loadtest.reliability.pocket import Round
from loadtest.reliability.repeated import BLOWS, Blow
from loadtest.reliability.spawner import Spawner

pytestmark = [pytest.mark.load, pytest.mark.timeout(400)]


@pytest.fixture(scope="module")
def spawner() -> Iterator[Spawner]:
    with Spawner() as one:
        yield one


@pytest.mark.parametrize("blow", BLOWS, ids=lambda blow: blow.what)
def test_streams_are_back_after_every_blow(tmp_path: Path, spawner: Spawner, blow: Blow) -> None:
    once = Blow(blow.what, 1, 10.0, 30.0, ingresses=blow.ingresses, failpoints=blow.failpoints)
    hit = asyncio.run(repeated.perform(once, tmp_path, spawner))
    assert hit.violations == []
    assert (hit.times, hit.never, hit.hurt_ended) == (1, [], 0)
    assert 0 < len(hit.recovery_s) == hit.hurt
    assert {figure.what for figure in repeated.figures([asdict(hit)])} >= {f"violations: {blow.what}"}


@pytest.mark.parametrize("method", pocket.METHODS)
def test_pictures_after_a_kill_and_a_drain_are_those_of_a_session_that_nobody_hurt(
    tmp_path: Path, spawner: Spawner, method: str
) -> None:
    found = asyncio.run(pocket.perform(Round(method, 1, kills=1, drains=1), tmp_path, spawner))
    assert (found.never, found.differ, found.errors) == (0, 0, [])
    assert found.said == ["exact", "exact"]
    assert found.pictures > 20
    assert len(pocket.figures([found.as_json()])) >= 3


def test_nothing_is_left_of_sessions_with_all_kinds_of_end(tmp_path: Path, spawner: Spawner) -> None:
    left = asyncio.run(leaks.perform(tmp_path, spawner, warm_up=len(ENDS), sessions=3 * len(ENDS)))
    assert (left.slots, left.leases, left.keys) == (0, 0, 0)
    assert max(left.tasks.values()) == 0
    assert max(left.fds.values()) == 0
    assert max(left.growth_mib.values()) < leaks.MAX_GROWTH_MIB
    assert set(left.ends) >= ENDS.keys() - {"drained", "client killed"}


def test_nobody_is_taken_for_hung_beside_busy_loops(tmp_path: Path, spawner: Spawner) -> None:
    alarms = asyncio.run(calm.perform(tmp_path, spawner, minutes=0.2))
    assert (alarms.replaced, alarms.violations) == ([], [])
    assert (alarms.moved, alarms.resumed, alarms.ended) == (0, 0, 0)
    assert alarms.frames == calm.STREAMS * 120
    assert alarms.pictures > 0
    assert {figure.met for figure in calm.figures([asdict(alarms)])[1:]} == {True}
