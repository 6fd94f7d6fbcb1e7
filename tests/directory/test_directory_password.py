"""The password of a shared directory, against a real server that asks for one."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from rearview.config import DirectoryConfig
from rearview.control.circuit import Circuit
from rearview.directory import DirectoryUnavailable, open_directory
from support.valkey import Server

pytestmark = pytest.mark.integration


@pytest.fixture
def locked_server(tmp_path: Path) -> Iterator[Server]:
    """A server that asks for a password."""
    server = Server(tmp_path, password="right")
    server.start()
    yield server
    server.stop()


async def leases_at(url: str) -> int:
    directory = open_directory(DirectoryConfig(redis_url=url), Circuit())
    try:
        await directory.reopen([])
        return len(await directory.list(None))
    finally:
        await directory.close()


async def test_the_password_of_redis_comes_from_the_environment(
    locked_server: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(DirectoryUnavailable):
        await leases_at(locked_server.url)
    monkeypatch.setenv("REARVIEW_REDIS_PASSWORD", "wrong")
    with pytest.raises(DirectoryUnavailable):
        await leases_at(locked_server.url)
    monkeypatch.setenv("REARVIEW_REDIS_PASSWORD", "right")
    assert await leases_at(locked_server.url) == 0


async def test_a_password_in_the_url_goes_before_that_of_the_environment(
    locked_server: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("REARVIEW_REDIS_PASSWORD", "wrong")
    assert await leases_at(locked_server.url.replace("//", "//:right@")) == 0
