"""Rolling updates of a real Ray Serve while streams run: replicas are replaced, and every stream goes on.

Serve is told of each update by a changed file, as a Kubernetes operator tells it.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator, Mapping
from itertools import pairwise

import pytest
from support.declared import Declared, declared
from support.valkey import Server
from support.waiting import eventually

from loadtest.reliability.history import Log, Run, Snapshot, What
from loadtest.reliability.plan import ClientKind, Plan, StreamPlan
from loadtest.reliability.ray_nodes import free_port
from loadtest.reliability.traffic import Clock, drive
from loadtest.reliability.validators import validate

pytestmark = [pytest.mark.load, pytest.mark.timeout(600)]

STREAMS, RATE = 4, 15.0
LONGEST_S = 300.0
"""What traffic lasts at most: it ends soon after the update."""
AROUND_S = 3.0
"""Traffic runs for so long before an update, and after it."""
SETTLE_S = 30.0
STILL_S = 2.0
"""A stream that stands still for less has not waited for a replica to start, which takes longer."""
GRACE_S = 3.0
GIVE_UP_S = 120.0
"""More than a replica takes to start, which on a busy machine may be long."""


class Updated:
    """The service of a file that is changed: two ingresses before replicas of one span."""

    def __init__(self, ray: Declared, redis_url: str) -> None:
        self._ray, self._redis_url, self._port = ray, redis_url, free_port()
        self._idle_timeout_s = self._cpus_percent = 60
        self._span: Mapping[str, int] = {"replicas": 2, "max_surge_percent": 50}
        self._deploy()

    def resize(self, **span: int) -> None:
        """Other numbers of replicas; nobody is there."""
        self._span = span
        self._deploy()

    def replace_the_span(self) -> None:
        """A change of one deployment alone."""
        self._cpus_percent -= 1
        self._deploy()

    def replace_all(self) -> None:
        """A change of the configuration, which every replica and ingress is given."""
        self._idle_timeout_s -= 1
        self._deploy()

    def replicas(self) -> set[str]:
        """Those that are there."""
        return {stage["replica_id"] for stage in self._ray.describe()["stages"]}

    def holds_nothing(self) -> bool:
        return not any(stage["sessions"] for stage in self._ray.describe()["stages"])

    def replaced(self, update: Callable[[], None]) -> Run:
        """What came of streams that ran before, while and after it. Every replica is another one then."""
        before = self.replicas()
        run = asyncio.run(self._traffic(update))
        assert not before & self.replicas()
        eventually(self.holds_nothing, SETTLE_S)
        return run

    async def _traffic(self, update: Callable[[], None]) -> Run:
        kinds, frames = (ClientKind.LIBRARY, ClientKind.RAW), round(LONGEST_S * RATE)
        streams = (
            StreamPlan(f"a/{number}", "a", client=kinds[number % 2], frames=frames, rate=RATE)
            for number in range(STREAMS)
        )
        plan, log, clock = Plan(streams=tuple(streams)), Log(), Clock()
        driving = asyncio.create_task(drive(plan, [f"127.0.0.1:{self._port}"], log, clock))
        await asyncio.sleep(AROUND_S)
        await asyncio.to_thread(update)
        await asyncio.sleep(AROUND_S)
        clock.is_over = True
        await driving
        return Run(plan, tuple(log.events), end=Snapshot(is_whole=False))

    def _deploy(self) -> None:
        span = {"name": "fused", "operators": ["encode", "denoise-0", "denoise-1", "decode"], **self._span}
        content = {
            "model": {"checkpoint": "chain:1+0.1", "width": 64, "height": 64},
            "topology": "fused",
            "spans": [span],
            "ingress": {
                "port": self._port,
                "replicas": 2,
                "drain_grace_s": GRACE_S,
                "idle_timeout_s": self._idle_timeout_s,
            },
            "directory": {"redis_url": self._redis_url},
            "recovery": {"give_up_s": GIVE_UP_S},
        }
        application = {
            "name": "rearview",
            "route_prefix": None,
            "import_path": "rearview.app:build_app_from_args",
            "args": {"config": content},
            "deployments": [{"name": "fused", "ray_actor_options": {"num_cpus": self._cpus_percent / 1000}}],
        }
        self._ray.deploy({"applications": [application]})


@pytest.fixture(scope="module")
def service(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Updated]:
    redis = Server(tmp_path_factory.mktemp("redis"))
    redis.start()
    with declared({}) as ray:
        yield Updated(ray, redis.url)
    redis.stop()


def notices(run: Run, stream: str) -> list[tuple[str, str | None]]:
    """Kind and continuity of each that the stream was given."""
    told = (event.data for event in run.streams()[stream] if event.what is What.NOTICE)
    return [(each["kind"], each["continuity"]) for each in told]


def longest_still_s(run: Run) -> float:
    """Between two pictures of a stream."""
    times = [[e.time_s for e in events if e.what is What.RESULT] for events in run.streams().values()]
    return max(after - before for each in times for before, after in pairwise(each))


def assert_served(run: Run) -> None:
    """Every frame of every stream was translated once, in order, by a session that knows all its past."""
    assert [str(violation) for violation in validate(run)] == []
    assert run.count(What.SENT) == run.count(What.RESULT) > STREAMS * RATE * AROUND_S
    assert run.count(What.OPENED) == run.count(What.ENDED) == STREAMS
    told = [each for stream in run.streams() for each in notices(run, stream)]
    assert {continuity for _, continuity in told} == {"exact"}


def test_a_span_is_replaced_with_room_for_more_and_streams_only_move(service: Updated) -> None:
    run = service.replaced(service.replace_the_span)
    assert_served(run)
    for stream in run.streams():
        assert set(notices(run, stream)) == {("moved", "exact")}
    assert longest_still_s(run) < STILL_S


def test_all_is_replaced_ingresses_too_and_streams_are_found_again(service: Updated) -> None:
    run = service.replaced(service.replace_all)
    assert_served(run)
    for stream in run.streams():
        assert {kind for kind, _ in notices(run, stream)} >= {"drain", "resumed", "moved"}
    assert longest_still_s(run) < STILL_S


def test_a_lone_replica_is_replaced_without_room_and_streams_wait_for_the_new_one(service: Updated) -> None:
    service.resize(replicas=1, max_surge_percent=0)
    run = service.replaced(service.replace_the_span)
    assert_served(run)
    for stream in run.streams():
        assert notices(run, stream) == [("moved", "exact")]
