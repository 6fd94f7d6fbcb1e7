"""`rearview probe` against a real service in another thread, and one that is not there."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Iterator

import pytest
from rearview.cli.main import app
from rearview.errors import DropReason
from support.fake_server import Faults, serving_in_thread
from support.raw_stream import running
from typer.testing import CliRunner, Result

pytestmark = [pytest.mark.integration, pytest.mark.timeout(60)]


def probe(address: str, *options: str) -> Result:
    return CliRunner().invoke(app, ["probe", "--server", address, *options])


@pytest.fixture
def service() -> Iterator[str]:
    """Address of a whole service without a model."""
    loop, addresses = asyncio.new_event_loop(), list[str]()
    began, ends = threading.Event(), asyncio.Event()

    async def serve() -> None:
        async with running() as found:
            addresses.append(found.address)
            began.set()
            await ends.wait()

    thread = threading.Thread(target=loop.run_until_complete, args=(serve(),))
    thread.start()
    assert began.wait(30)
    yield addresses[0]
    loop.call_soon_threadsafe(ends.set)
    thread.join()
    loop.close()


def test_frames_that_come_back_are_timed(service: str) -> None:
    result = probe(service)
    assert result.exit_code == 0, result.output
    assert result.output.startswith("frames flow: the first after ")


def test_pictures_are_asked_for_of_a_model_that_makes_some() -> None:
    with serving_in_thread() as server:
        assert probe(server.address).exit_code == 0


def test_a_frame_that_is_dropped_is_a_failure() -> None:
    with serving_in_thread(Faults(drop={1: DropReason.FAULT})) as server:
        result = probe(server.address)
    assert result.exit_code == 1
    assert "a frame was dropped" in result.output


def test_where_nobody_answers_it_fails_within_its_time() -> None:
    result = probe("127.0.0.1:1", "--timeout-s", "3")
    assert result.exit_code == 1
    assert "UNREACHABLE" in result.output
