"""When a stream counts as idle."""

from __future__ import annotations

import asyncio
from typing import Any

import grpc
import pytest
from rearview.errors import Reason
from rearview.ingress.idle import Activity, idle_error, idle_in
from rearview.ingress.placing import Placing
from support.raw_stream import RawStream, running

pytestmark = pytest.mark.integration

IDLE_S = 10.0


@pytest.mark.parametrize(
    ("owes", "starves", "left_s"),
    [
        (False, False, 7.0),  # counts from the last thing of any kind
        (True, False, 10.0),  # is at work
        (True, True, 2.0),  # counts from the last thing but credit
    ],
)
def test_how_long_a_stream_may_be_silent(owes: bool, starves: bool, left_s: float) -> None:
    activity = Activity.at(100.0).credit_at(105.0)
    assert idle_in(activity, 108.0, IDLE_S, owes=owes, starves=starves) == left_s


def test_a_stream_that_was_heard_again_has_the_whole_time() -> None:
    assert idle_in(Activity.at(108.0), 108.0, IDLE_S, owes=False, starves=False) == IDLE_S


def test_a_silent_stream_is_idle_from_the_limit_on() -> None:
    for now, is_idle in ((109.9, False), (110.0, True), (200.0, True)):
        assert (idle_in(Activity.at(100.0), now, IDLE_S, owes=False, starves=False) <= 0) is is_idle


def test_the_error_says_what_a_warm_up_waits_for() -> None:
    assert idle_error(IDLE_S, 0).metadata == {}
    error = idle_error(IDLE_S, 3)
    assert (error.reason, error.metadata) == (Reason.IDLE, {"warm_up_missing": "3"})


async def test_an_open_slower_than_the_idle_limit_does_not_count_as_silence(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    place = Placing.place

    async def slow(self: Placing, *args: Any) -> Any:
        await asyncio.sleep(1.5)
        return await place(self, *args)

    monkeypatch.setattr(Placing, "place", slow)
    async with running(ingress={"idle_timeout_s": 1.0}) as service, RawStream(service.address) as stream:
        await stream.start()
        await stream.frame(0)
        await stream.read_answers(1)
        await stream.half_close()
        assert (await stream.read_to_end()).code is grpc.StatusCode.OK
