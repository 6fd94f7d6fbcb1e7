"""Sessions of the library outlive their tokens if a function gives the next one."""

from __future__ import annotations

import time
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path

import numpy as np
import pytest
from rearview.client import (
    Client,
    DropPolicy,
    Frame,
    ImageFormat,
    Notice,
    NoticeKind,
    Reconnect,
    Token,
    Translated,
    sync,
)
from rearview.errors import InvalidRequest, NotFound, Reason
from support.fake_server import SIZE, FakeServer, Faults, serving_in_thread
from support.raw_stream import eventually, running
from support.tokens import Registry

pytestmark = [pytest.mark.integration, pytest.mark.timeout(60)]

QUICK = Reconnect(first_wait_s=0.01, max_wait_s=0.05)
PICTURE = np.zeros((SIZE, SIZE, 3), np.uint8)


def giving(*tokens: str) -> Callable[[], str]:
    """One after the other, and the last one for ever."""
    left = list(tokens)
    return lambda: left.pop(0) if len(left) > 1 else left[0]


def waiting(*tokens: str) -> Callable[[], Awaitable[str]]:
    give = giving(*tokens)

    async def wait() -> str:
        return give()

    return wait


async def test_a_session_goes_on_when_its_token_expires(tmp_path: Path) -> None:
    registry = Registry(tmp_path)
    answers: list[int] = []
    resumed: list[Notice] = []

    def token() -> str:
        """Soon over, until frames are answered."""
        return registry.issuer.token(exp=time.time() + (300 if answers else 2))

    async def frames() -> AsyncIterator[Frame]:
        for number in range(8):
            yield Frame(b"%d" % number, format=ImageFormat.OPAQUE)
            await eventually(lambda count=number: len(answers) > count)
            if number == 3:
                await eventually(lambda: len(resumed) > 0)

    async with (
        running(**registry.sections) as service,
        Client(service.address, token, reconnect=QUICK) as client,
    ):
        async for answer in client.translate_frames(frames(), prompt="a", drop_policy=DropPolicy.LOSSLESS):
            if isinstance(answer, Translated):
                answers.append(answer.frame_index)
            elif isinstance(answer, Notice) and answer.kind is NoticeKind.RESUMED:
                resumed.append(answer)
    assert answers == list(range(8))
    assert len(resumed) == 1


@pytest.mark.parametrize("kind", [giving, waiting])
async def test_sessions_and_calls_try_again_with_another_token(kind: Callable[..., Token]) -> None:
    async with FakeServer(Faults(token="good")) as server:
        async with Client(server.address, kind("old", "good"), reconnect=QUICK) as client:
            assert len([answer async for answer in client.translate_frames([PICTURE])]) == 1
        async with Client(server.address, kind("old", "good"), reconnect=QUICK) as client:
            with pytest.raises(NotFound):
                await client.get_session("none")


async def test_a_token_that_stays_the_same_is_not_tried_again() -> None:
    async with (
        FakeServer(Faults(token="good")) as server,
        Client(server.address, lambda: "bad", reconnect=QUICK) as client,
    ):
        for work in (client.open().__aenter__, lambda: client.get_session("none")):
            with pytest.raises(InvalidRequest) as caught:
                await work()
            assert caught.value.reason is Reason.TOKEN_INVALID


@pytest.mark.parametrize("kind", [giving, waiting])
def test_the_blocking_client_asks_for_its_token_too(kind: Callable[..., Token]) -> None:
    with (
        serving_in_thread(Faults(token="good")) as server,
        sync.Client(server.address, kind("old", "good"), reconnect=QUICK) as client,
    ):
        assert len(list(client.translate_frames([PICTURE]))) == 1
