"""Replicas are asked who they are; one that does not answer neither delays nor hides the others."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Sequence

import pytest
from rearview.ingress.describing import Described, Description

pytestmark = pytest.mark.unit

LONG_S = 60.0


class Replicas:
    """Those of a span, some of which are silent, or gone."""

    def __init__(self, *names: str) -> None:
        self.names = list(names)
        self.silent: set[str] = set()
        self.dead: set[str] = set()
        self.round = 0
        self.speaks = asyncio.Event()
        self.is_away = False

    async def ask(self) -> Sequence[Awaitable[Description]]:
        if self.is_away:
            raise ConnectionError
        self.round += 1
        return [self._answer(name, self.round) for name in self.names]

    async def _answer(self, name: str, round_: int) -> Description:
        if name in self.dead:
            raise RuntimeError("the actor died")
        if name in self.silent:
            await self.speaks.wait()
        return {"replica_id": name, "round": round_}


def words(found: Sequence[Description]) -> dict[str, int]:
    return {word["replica_id"]: word["round"] for word in found}


async def test_one_that_is_silent_hides_nobody_and_its_last_word_stays() -> None:
    replicas = Replicas("a", "b", "c")
    described = Described(replicas.ask, patience_s=0.02)
    assert words(await described.refresh()) == {"a": 1, "b": 1, "c": 1}
    replicas.silent.add("b")
    async with asyncio.timeout(LONG_S / 10):
        assert words(await described.refresh()) == {"a": 2, "b": 1, "c": 2}
    replicas.names.remove("b")  # Replaced by whoever placed it.
    assert words(await described.refresh()) == {"a": 3, "c": 3}
    await described.stop()


async def test_one_that_died_while_it_was_asked_is_not_there() -> None:
    replicas = Replicas("a", "b")
    described = Described(replicas.ask, patience_s=LONG_S)
    await described.refresh()
    replicas.dead.add("a")
    assert words(await described.refresh()) == {"b": 2}


async def test_one_that_is_slow_from_the_start_is_known_from_the_next_round_on() -> None:
    replicas = Replicas("a", "b")
    replicas.silent.add("b")
    described = Described(replicas.ask, patience_s=0.02)
    assert words(await described.refresh()) == {"a": 1}
    replicas.speaks.set()
    assert words(await described.refresh()).keys() == {"a", "b"}


async def test_where_nobody_can_be_asked_what_was_known_is_known() -> None:
    replicas = Replicas("a")
    described = Described(replicas.ask, patience_s=0.02)
    await described.refresh()
    replicas.is_away = True
    assert words(await described.refresh()) == {"a": 1}
    replicas.is_away, replicas.names = False, []
    assert words(await described.refresh()) == {}
