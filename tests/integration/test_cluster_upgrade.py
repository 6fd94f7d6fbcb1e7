"""A second service beside the first, on one Redis, while streams run: they go on in it.

Both are plain processes with the classes that Ray Serve runs, and share nothing but Redis and the links'
secret, as the two Ray clusters of a rolling upgrade do. `-s` shows what came of it.
"""

from __future__ import annotations

import asyncio
import time
from collections import Counter
from collections.abc import Iterator
from itertools import pairwise

import pytest
from rearview.config import ServiceConfig, load_config
from rearview.local import PlainService
from support.valkey import Server

from loadtest.reliability.history import Log, Run, Snapshot, What
from loadtest.reliability.plan import ClientKind, Plan, StreamPlan
from loadtest.reliability.ray_nodes import free_port
from loadtest.reliability.traffic import Clock, drive
from loadtest.reliability.validators import validate

pytestmark = [pytest.mark.load, pytest.mark.timeout(300)]

STREAMS, RATE, LONGEST_S = 4, 15.0, 200.0
AROUND_S = 3.0
"""Traffic runs for so long before the new service is started, and after the old one has gone."""
HANDED_OVER_S = 60.0
STILL_S = 2.0


@pytest.fixture
def redis(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    server = Server(tmp_path_factory.mktemp("redis"))
    server.start()
    yield server.url
    server.stop()


def config(redis_url: str, port: int) -> ServiceConfig:
    operators = ["encode", "denoise-0", "denoise-1", "decode"]
    return load_config(
        {
            "model": {"checkpoint": "chain:1+0.1", "width": 64, "height": 64},
            "topology": "pipeline",
            "spans": [
                {"name": "encode", "operators": operators[:2]},
                {"name": "decode", "operators": operators[2:]},
            ],
            "ingress": {"port": port, "drain_grace_s": 3.0},
            "directory": {"redis_url": redis_url, "takes_over": True},
            "link": {"secret": "shared-by-both"},
        }
    )


def sessions(service: PlainService) -> int:
    return sum(len(stage["sessions"]) for stage in service.stages)


def upgraded(old: PlainService, new: PlainService) -> None:
    """Start the new one, and return when the old one holds no session any more."""
    new.__enter__()
    until_s = time.monotonic() + HANDED_OVER_S
    while sessions(old) or sessions(new) < 2 * STREAMS:
        assert time.monotonic() < until_s, "sessions stay in the old service"
        time.sleep(0.1)
    time.sleep(AROUND_S)  # Its ingress ends its streams when the grace is over.
    old.stop()


async def traffic(old: PlainService, new: PlainService) -> Run:
    kinds = (ClientKind.LIBRARY, ClientKind.RAW)
    streams = tuple(
        StreamPlan(f"a/{2 * n}", "a", client=kinds[n % 2], frames=round(LONGEST_S * RATE), rate=RATE)
        for n in range(STREAMS)
    )
    plan, log, clock = Plan(streams=streams), Log(), Clock()
    driving = asyncio.create_task(drive(plan, [old.address, f"127.0.0.1:{PORTS[1]}"], log, clock))
    await asyncio.sleep(AROUND_S)
    await asyncio.to_thread(upgraded, old, new)
    await asyncio.sleep(AROUND_S)
    clock.is_over = True
    await driving
    return Run(plan, tuple(log.events), end=Snapshot(is_whole=False))


PORTS = [free_port(), free_port()]


def test_streams_go_on_in_the_new_service_and_no_frame_is_lost(redis: str) -> None:
    old, new = (PlainService(config(redis, port)) for port in PORTS)
    try:
        with old:
            run = asyncio.run(traffic(old, new))
    finally:
        new.stop()
    told = Counter(
        (event.data["kind"], event.data["continuity"]) for event in run.events if event.what is What.NOTICE
    )
    times = [[e.time_s for e in events if e.what is What.RESULT] for events in run.streams().values()]
    longest_s = max(after - before for each in times for before, after in pairwise(each))
    print(f"{run.count(What.RESULT)} of {run.count(What.SENT)} frames, longest gap {longest_s:.2f} s, {told}")
    assert [str(violation) for violation in validate(run)] == []
    assert run.count(What.SENT) == run.count(What.RESULT) > STREAMS * RATE * 2 * AROUND_S
    assert run.count(What.OPENED) == run.count(What.ENDED) == STREAMS, "none was opened anew"
    assert {continuity for (_, continuity) in told} == {"exact"}, "none was reset"
    assert longest_s < STILL_S
