"""One answer for all who ask at a time."""

from __future__ import annotations

import asyncio

import pytest
from rearview.ingress.shared import Shared
from support.raw_stream import eventually

pytestmark = pytest.mark.unit


class Question:
    """Answers how often it was put, when it is let."""

    def __init__(self) -> None:
        self.put = 0
        self.let = asyncio.Semaphore(0)

    async def __call__(self) -> int:
        self.put += 1
        number = self.put
        await self.let.acquire()
        return number


async def until_put(question: Question, times: int) -> None:
    await eventually(lambda: question.put == times)


async def test_who_asks_while_an_answer_is_on_its_way_gets_the_next_one() -> None:
    question = Question()
    shared = Shared(question)
    first = asyncio.gather(shared(), shared())
    await until_put(question, 1)
    later = asyncio.gather(*(shared() for _ in range(5)))
    await asyncio.sleep(0)
    assert question.put == 1
    question.let.release()
    assert await first == [1, 1]
    question.let.release()
    assert await later == [2] * 5
    assert question.put == 2


async def test_who_gives_up_takes_the_answer_from_nobody() -> None:
    question = Question()
    shared = Shared(question)
    waiting = [asyncio.create_task(shared()) for _ in range(2)]
    await until_put(question, 1)
    waiting[0].cancel()
    question.let.release()
    assert await waiting[1] == 1
    await shared.settle()


async def test_all_hear_of_an_error_and_the_next_may_do_better() -> None:
    failures = iter([KeyError("x")])

    async def ask() -> str:
        for error in failures:
            raise error
        return "well"

    shared = Shared(ask)
    told = await asyncio.gather(shared(), shared(), return_exceptions=True)
    assert [type(each) for each in told] == [KeyError, KeyError]
    assert await shared() == "well"
