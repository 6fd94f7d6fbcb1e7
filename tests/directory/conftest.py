"""What the tests of both stores share."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest
from rearview.directory import Directory
from support.stores import MemoryStore, RedisStore, Store
from support.valkey import Server


@pytest.fixture(scope="session")
def shared_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """A server that no test stops."""
    server = Server(tmp_path_factory.mktemp("valkey"))
    server.start()
    yield server
    server.stop()


@pytest.fixture
def own_server(tmp_path: Path) -> Iterator[Server]:
    """A server that the test may stop."""
    server = Server(tmp_path)
    server.start()
    yield server
    server.stop()


@pytest.fixture
async def redis_store(shared_server: Server) -> AsyncIterator[RedisStore]:
    """An empty store that serves, in Redis."""
    store = RedisStore(shared_server.url)
    yield store
    await store.close()


@pytest.fixture(params=["memory", "redis"])
async def store(request: pytest.FixtureRequest) -> AsyncIterator[Store]:
    """An empty store that serves."""
    found: Store = (
        MemoryStore()
        if request.param == "memory"
        else RedisStore(request.getfixturevalue("shared_server").url)
    )
    yield found
    await found.close()


@pytest.fixture
def directory(store: Store) -> Directory:
    """A handle of it."""
    return store.open()
