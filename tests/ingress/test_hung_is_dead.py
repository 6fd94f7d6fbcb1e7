"""Replicas that hang, are stopped or lose their device: found, condemned, replaced, and ending themselves."""

from __future__ import annotations

import asyncio
import signal
import threading
import time
from collections.abc import AsyncIterator, Iterator, Mapping, Sequence
from contextlib import asynccontextmanager, contextmanager
from pathlib import Path
from typing import Any

import grpc
import pytest
import torch
from rearview.contract.beat import Beat, Cause
from rearview.contract.events import Event, Events, ReplicaCondemned
from rearview.engine.networks.model import Forward
from rearview.engine.rows import Row
from rearview.ingress.server import IngressServer
from rearview.ingress.service import Ingress
from rearview.replica.pulse import EXIT_CONDEMNED
from rearview.replica.stage import Stage
from rearview.transport.beat import decode_beat, encode_beat
from rearview.transport.wire import Kind, WireError
from rearview.v1 import settings_pb2
from rearview.v1 import translation_service_pb2 as pb
from support.owner import driven, spec
from support.raw_stream import OPERATORS, RawStream, eventually, null_config, quickly_stopped, running
from support.replica_process import ReplicaProcess, replica_processes
from support.service import InProcessService

pytestmark = pytest.mark.integration

PIPELINE = ((OPERATORS[0],), OPERATORS[1:3], (OPERATORS[3],))
VERDICT_S = 3.0
"""At worst; what these tests allow is more, since other tests may run beside them."""
WITH_ROOM = 3.0


@contextmanager
def hanging(stage: Stage) -> Iterator[threading.Event]:
    """From now on the replica's forwards do not return; the event is set as soon as one has begun."""
    assert stage._runner is not None
    engine = stage._runner._engine
    assert engine is not None
    model, entered, go_on = engine._forwards._model, threading.Event(), threading.Event()

    class Hangs:
        def __getattr__(self, name: str) -> Any:
            return getattr(model, name)

        def forward(self, rows: Sequence[Row], *views: Any) -> Forward:
            entered.set()
            assert go_on.wait(60)
            return model.forward(rows, *views)

    engine._forwards._model = Hangs()  # type: ignore[assignment]
    try:
        yield entered
    finally:
        go_on.set()


def break_device(stage: Stage) -> None:
    """From now on the replica's device answers nothing but an error."""
    assert stage._runner is not None
    engine = stage._runner._engine
    assert engine is not None
    model = engine._forwards._model

    class Broken:
        def __getattr__(self, name: str) -> Any:
            return getattr(model, name)

        def forward(self, rows: Sequence[Row], *views: Any) -> Forward:
            raise torch.AcceleratorError("CUDA error: device-side assert triggered")

    engine._forwards._model = Broken()  # type: ignore[assignment]


def listened(ingress: Ingress) -> list[ReplicaCondemned]:
    """The replicas that the ingress condemns from now on."""
    found: list[ReplicaCondemned] = []
    counted = ingress.events

    def listen(event: Event) -> None:
        if isinstance(event, ReplicaCondemned):
            found.append(event)
        counted(event)

    pulses = ingress._lanes.pulses
    listener: Events = listen
    pulses._events = listener
    return found


async def began(stream: RawStream) -> None:
    """One frame has gone all the way and come back, so that no forward is the first of its kind."""
    await stream.start(drop_policy=pb.DROP_POLICY_LOSSLESS)
    await stream.frame(0)
    await stream.read_answers(1)


def lane_of(service: Ingress | InProcessService, stream: RawStream) -> tuple[str, ...]:
    return service.sessions[stream.opened.session_id].session.lane.replicas


async def seconds_to_open(address: str) -> tuple[float, RawStream]:
    stream = RawStream(address)
    started_s = time.monotonic()
    await stream.start(drop_policy=pb.DROP_POLICY_LOSSLESS)
    return time.monotonic() - started_s, stream


@pytest.mark.parametrize("span", range(len(PIPELINE)))
async def test_a_replica_whose_engine_hangs_is_condemned_and_ends_itself(span: int) -> None:
    async with running(spans=PIPELINE, replicas=2) as service, RawStream(service.address) as stream:
        all_condemned = [listened(ingress) for ingress in service.ingresses]
        await began(stream)
        hung = lane_of(service, stream)[span]
        stage = next(each for each in service.stages if each.describe()["replica_id"] == hung)
        assert stage._pulse is not None
        ended: list[str] = []
        stage._pulse._on_end = ended.append
        with hanging(stage) as entered:
            await stream.frame(1)
            await asyncio.to_thread(entered.wait, 20)
            hung_s = time.monotonic()
            await eventually(lambda: all(all_condemned))
            assert time.monotonic() - hung_s < VERDICT_S + WITH_ROOM
            for condemned in all_condemned:
                assert condemned == [ReplicaCondemned(f"span-{span}", Cause.HUNG)]
            await stream.read_answers(1)  # Its session went on elsewhere.
            assert (stream.indices, stream.drops) == ([0, 1], [])
            assert stream.moves == [pb.CONTINUITY_EXACT]
            await eventually(lambda: ended == ["its engine hangs"])
            with pytest.raises(RuntimeError):
                stage.check_health()
            for _ in range(3):  # It describes itself, and nobody believes it.
                for ingress in service.ingresses:
                    await ingress.refresh()
                took_s, other = await seconds_to_open(service.address)
                assert took_s < 1.0 + WITH_ROOM
                assert hung not in lane_of(service, other)
                await other.frame(0)
                await other.read_answers(1)
                await other.__aexit__()


async def test_a_replica_that_hangs_fails_its_health_check_by_itself() -> None:
    async with driven() as (stage, (owner,)):
        session = spec()
        assert await owner.open(session) is None
        owner.send(session, 0)
        await eventually(lambda: owner.ordinals == [0])
        stage.check_health()
        with hanging(stage) as entered:
            owner.send(session, 1)
            await asyncio.to_thread(entered.wait, 20)

            def is_unhealthy() -> bool:
                try:
                    stage.check_health()
                except RuntimeError:
                    return True
                return False

            await eventually(is_unhealthy)
            started_s = time.monotonic()
            await stage.drain(grace_s=60)
            assert time.monotonic() - started_s < 30, "what hangs does not finish"
        await eventually(lambda: not is_unhealthy())


async def test_a_replica_that_is_condemned_although_it_is_well_says_nothing_more_and_lives_on() -> None:
    async with driven() as (stage, (owner,)):
        assert stage._pulse is not None
        ended: list[str] = []
        stage._pulse._on_end = ended.append
        link = owner.link
        link.send(Kind.CONDEMN)
        await eventually(lambda: link.closed)
        with pytest.raises(RuntimeError, match="taken for dead"):
            stage.check_health()
        assert ended == []
        assert not stage._server._links


@asynccontextmanager
async def apart(
    replicas: int = 2, logs: Path | None = None
) -> AsyncIterator[tuple[IngressServer, Ingress, list[ReplicaProcess]]]:
    """An ingress here, and replicas in processes of their own."""
    config = null_config(replicas=replicas, link={"secret": "s"})
    async with replica_processes(config, logs) as processes:

        async def members() -> list[Mapping[str, Any]]:
            return [each.described for each in processes if each.is_running]

        ingress = Ingress(config, "ingress#0", "node", members)
        server = IngressServer(ingress)
        with quickly_stopped():
            await server.start()
            try:
                yield server, ingress, processes
            finally:
                await server.stop()


async def test_a_stopped_process_is_condemned_and_ends_itself_when_it_wakes() -> None:
    async with apart() as (server, ingress, processes), RawStream(server.address) as stream:
        condemned = listened(ingress)
        await began(stream)
        (home,) = lane_of(ingress, stream)
        victim = next(each for each in processes if each.replica_id == home)
        victim.signal(signal.SIGSTOP)
        stopped_s = time.monotonic()
        while not condemned:
            took_s, other = await seconds_to_open(server.address)
            assert took_s < 1.0 + WITH_ROOM
            await other.__aexit__()
        assert time.monotonic() - stopped_s < VERDICT_S + WITH_ROOM
        assert condemned == [ReplicaCondemned("span-0", Cause.SILENT)]
        took_s, other = await seconds_to_open(server.address)
        assert lane_of(ingress, other) != (home,)
        await other.__aexit__()
        victim.signal(signal.SIGCONT)
        assert await victim.ended() == EXIT_CONDEMNED


async def test_a_replica_whose_device_breaks_ends_at_once_and_its_sessions_go_on_elsewhere(
    tmp_path: Path,
) -> None:
    async with apart(logs=tmp_path) as (server, ingress, processes), RawStream(server.address) as stream:
        condemned = listened(ingress)
        await began(stream)
        (home,) = lane_of(ingress, stream)
        victim = next(each for each in processes if each.replica_id == home)
        await victim.arm("engine.forward=break")
        await stream.frame(1)
        broke_s = time.monotonic()
        await stream.read_answers(1)
        assert time.monotonic() - broke_s < WITH_ROOM
        assert (stream.indices, stream.drops) == ([0, 1], [])
        assert stream.moves == [pb.CONTINUITY_EXACT]
        assert lane_of(ingress, stream) != (home,)
        assert await victim.ended() == EXIT_CONDEMNED
        assert condemned in ([], [ReplicaCondemned("span-0", Cause.BROKEN)]), "its last beat may be lost"
        assert victim.log is not None
        said = victim.log.read_text(encoding="utf-8").splitlines()
        why = "its device is broken: CUDA error: an illegal memory access was encountered"
        assert said[-1].endswith(f"this process ends itself: {why}")
        await stream.frame(2)
        await stream.read_answers(1)


async def test_a_replica_that_shares_its_process_says_that_its_device_is_broken_and_falls_silent() -> None:
    async with running(spans=PIPELINE, replicas=2) as service, RawStream(service.address) as stream:
        all_condemned = [listened(ingress) for ingress in service.ingresses]
        await began(stream)
        lost = lane_of(service, stream)[1]
        stage = next(each for each in service.stages if each.describe()["replica_id"] == lost)
        break_device(stage)
        await stream.frame(1)
        await stream.read_answers(1)
        assert (stream.indices, stream.drops) == ([0, 1], [])
        assert stream.moves == [pb.CONTINUITY_EXACT]
        for condemned in all_condemned:
            assert condemned == [ReplicaCondemned("span-1", Cause.BROKEN)]
        with pytest.raises(RuntimeError):
            stage.check_health()


async def test_opens_while_the_only_replica_is_stopped_are_refused_soon() -> None:
    async with apart(replicas=1) as (server, ingress, (only,)):
        only.signal(signal.SIGSTOP)
        for _ in range(3):
            started_s = time.monotonic()
            async with RawStream(server.address) as stream:
                await stream.write(
                    pb.TranslateRequest(open=pb.Open(settings=settings_pb2.Settings(prompt="a")))
                )
                end = await stream.read_to_end()
            assert time.monotonic() - started_s < 1.0 + WITH_ROOM
            assert end.code in (grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.RESOURCE_EXHAUSTED)
            assert end.retry_after_s is not None
        assert len(ingress.sessions) == 0


async def test_a_replica_that_was_never_linked_delays_no_open_while_it_is_stopped() -> None:
    async with apart() as (server, ingress, processes):
        first = processes.pop(0)
        await ingress.refresh()
        await eventually(lambda: len(ingress._lanes.pulses._links) == 2)
        for link in tuple(ingress._lanes.pulses._links.values()):
            link.close()
        await eventually(lambda: not ingress._lanes.pulses._links)
        first.signal(signal.SIGSTOP)
        processes.append(first)
        for _ in range(4):
            took_s, stream = await seconds_to_open(server.address)
            assert took_s < 1.0 + WITH_ROOM
            assert lane_of(ingress, stream) == (processes[0].replica_id,)
            await stream.__aexit__()
        first.signal(signal.SIGCONT)
        await eventually(lambda: len(ingress._lanes.pulses._links) == 2)
        await eventually(lambda: ingress._lanes.pulses._judge.is_trusted(first.described["address"]))


@pytest.mark.parametrize("body", [b"", b"[]", b"{}", b'{"alive":1,"work":[]}', b"\xff"])
async def test_a_heartbeat_that_cannot_be_read_ends_its_link(body: bytes) -> None:
    with pytest.raises(WireError):
        decode_beat(body)
    async with running() as service:
        pulses = service.ingresses[0]._lanes.pulses
        await eventually(lambda: bool(pulses._links))
        (link,) = pulses._links.values()
        service.stages[0]._server.broadcast(Kind.HEARTBEAT, body)
        await eventually(lambda: link.closed)
        await eventually(lambda: bool(pulses._links)), "another one is made"


def test_a_heartbeat_says_what_it_said() -> None:
    for beat in (Beat(True, None), Beat(False, None)):
        assert decode_beat(encode_beat(beat)) == beat
