"""Which of several addresses is called, and when a connection is let go."""

from __future__ import annotations

import socket
from typing import Any

import numpy as np
import pytest
from rearview.client import Client, DropPolicy, Reconnect, Translated, Unreachable
from rearview.client.routes import Routes, addresses_of
from support.fake_server import FakeServer

pytestmark = pytest.mark.integration

SIDE = 64
QUICK = Reconnect(first_wait_s=0.01, max_wait_s=0.02, accept_timeout_s=0.3)


class Channel:
    def __init__(self, address: str) -> None:
        self.address, self.is_closed = address, False

    async def close(self) -> None:
        self.is_closed = True


@pytest.mark.parametrize(
    ("given", "addresses"),
    [
        ("a:1", ("a:1",)),
        ("a:1, b:2", ("a:1", "b:2")),
        (["a:1", "unix:/x,y"], ("a:1", "unix:/x,y")),
        ("localhost", ("localhost:50051",)),
        ("localhost:", ("localhost:50051",)),
        ("10.0.0.7, b", ("10.0.0.7:50051", "b:50051")),
        ("::1", ("[::1]:50051",)),
        ("[::1]", ("[::1]:50051",)),
        ("[::1]:", ("[::1]:50051",)),
        ("[::1]:7", ("[::1]:7",)),
        (["dns:///host", "ipv4:1.2.3.4:5"], ("dns:///host", "ipv4:1.2.3.4:5")),
    ],
)
def test_addresses_are_given_in_one_text_or_as_a_sequence(given: Any, addresses: tuple[str, ...]) -> None:
    assert addresses_of(given) == addresses


@pytest.mark.parametrize(
    ("given", "words"),
    [
        ("http://host:1", "without a scheme"),
        ("host/x", "without a scheme or a path"),
        ("host:port", "port is no port"),
        ("host:0", "0 is no port"),
        ("host:65536", "65536 is no port"),
        (":50051", "has no host"),
    ],
)
def test_what_can_be_no_address_is_refused(given: str, words: str) -> None:
    with pytest.raises(ValueError, match=words):
        addresses_of(given)


def test_no_address_is_a_mistake() -> None:
    with pytest.raises(ValueError, match="no address"):
        addresses_of(" ,")


async def test_all_calls_use_one_way_until_it_fails_and_its_last_call_closes_it() -> None:
    made: list[Channel] = []

    def dial(address: str) -> Any:
        made.append(Channel(address))
        return made[-1]

    routes = Routes(("a", "b"), dial)
    one, other = routes.take(), routes.take()
    assert one is other
    routes.leave(one, failed=True)
    assert routes.take().address == "b"
    assert not made[0].is_closed
    routes.leave(other, failed=True)  # The same loss: it is not held against `b`.
    third = routes.take()
    assert third.address == "b"
    routes.leave(third, failed=True)
    assert routes.take().address == "a"
    assert [channel.address for channel in made] == ["a", "b", "a"], "a way that failed is not taken again"
    await routes.close()
    assert [channel.is_closed for channel in made] == [True, False, True], "somebody still uses `b`"


async def test_a_session_is_opened_where_somebody_answers() -> None:
    with socket.create_server(("127.0.0.1", 0)) as deaf:  # Connections are taken, and nobody speaks.
        silent = f"127.0.0.1:{deaf.getsockname()[1]}"
        async with (
            FakeServer() as server,
            Client(f"127.0.0.1:1,{silent},{server.address}", reconnect=QUICK) as client,
            client.open(prompt="a", drop_policy=DropPolicy.LOSSLESS) as session,
        ):
            await session.send(np.zeros((SIDE, SIDE, 3), np.uint8))
            assert isinstance(await anext(session), Translated)
            assert [each.session_id for each in await client.list_sessions()] == [session.opened.session_id]


async def test_where_nobody_answers_the_last_error_is_told() -> None:
    async with Client("127.0.0.1:1,127.0.0.1:2", reconnect=QUICK) as client:
        with pytest.raises(Unreachable, match=r"127\.0\.0\.1:2"):
            await client.list_sessions()
