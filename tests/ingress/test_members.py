"""When replicas are asked who they are: when others are there, now and then, and never too often."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence
from typing import Any

import pytest
from rearview.config import LinkConfig
from rearview.control import lane_events as words
from rearview.ingress.lanes import Lanes
from rearview.ingress.members import ASK_S, INTERVAL_S, REST_S, Present, Roster, unasked
from support.toy import Clock

pytestmark = pytest.mark.unit


class Replicas:
    """Those that are there; nobody is dialled, since none says where it is."""

    def __init__(self, *names: str) -> None:
        self.names, self.rounds = set(names), 0

    async def ask(self) -> Sequence[Mapping[str, Any]]:
        self.rounds += 1
        return ()

    def present(self) -> frozenset[str]:
        return frozenset(self.names)


def roster(replicas: Replicas, clock: Clock, present: Present) -> Roster:
    lanes = Lanes(
        ["fused"],
        LinkConfig(secret="s"),
        "node",
        on_frame=lambda _: None,
        on_lane_lost=lambda *_: None,
        on_lane_drains=lambda *_: None,
        source=lambda _: pytest.fail("nothing is pulled"),
    )
    return Roster(replicas.ask, lanes, (), present, clock)


async def test_the_same_replicas_are_asked_now_and_then_and_others_at_once() -> None:
    replicas, clock = Replicas("a", "b"), Clock(100.0)
    asked = roster(replicas, clock, replicas.present)
    assert asked.is_due
    await asked.refresh()
    clock.now_s += REST_S - 0.1
    assert not asked.is_due
    clock.now_s += 0.2
    assert asked.is_due
    await asked.refresh()
    replicas.names.add("c")
    assert asked.is_due
    await asked.refresh()
    assert not asked.is_due
    replicas.names.remove("a")
    assert asked.is_due


async def test_one_that_is_there_and_takes_no_session_is_asked_for_at_once() -> None:
    replicas, clock = Replicas("r0"), Clock(100.0)
    asked = roster(replicas, clock, replicas.present)
    await asked.refresh()
    asked._lanes.update([described(0)])
    assert not asked.is_due
    asked._lanes._happened(words.Doubted("nowhere-0"))
    assert asked.is_due
    await asked._lanes.stop()


async def test_where_nobody_knows_who_is_there_all_are_asked_each_time() -> None:
    replicas, clock = Replicas("a"), Clock()
    asked = roster(replicas, clock, unasked)
    for rounds in range(1, 4):
        assert asked.is_due
        await asked.refresh()
        assert replicas.rounds == rounds


async def test_a_crowd_that_wants_to_know_asks_many_replicas_no_more_than_they_can_answer() -> None:
    class Many(Replicas):
        async def ask(self) -> Sequence[Mapping[str, Any]]:
            await super().ask()
            return [described(number) for number in range(100)]

    replicas = Many()
    clock = asyncio.get_running_loop().time
    asked = roster(replicas, Clock(), unasked)
    asked = Roster(asked._members, asked._lanes, (), unasked, clock)
    begun_s = clock()
    for _ in range(3):
        await asked.refresh()
    assert clock() - begun_s >= 2 * 100 * ASK_S
    assert 100 * ASK_S < INTERVAL_S


def described(number: int) -> Mapping[str, Any]:
    told = {"replica_id": f"r{number}", "span": "fused", "node": "node", "free_slots": 1, "slots": 1}
    return {**told, "address": f"nowhere-{number}"}
