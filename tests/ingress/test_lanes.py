"""Lanes over real replicas: opened whole or not at all, kept for life, and told when lost."""

from __future__ import annotations

import asyncio
import time
import uuid
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pytest
from rearview.config import ServiceConfig
from rearview.contract.frame import PICTURE, Frame
from rearview.contract.lease import Lease
from rearview.contract.session import SessionSpec
from rearview.contract.settings import Settings
from rearview.errors import Fault, NotFound, Reason, Refused
from rearview.ingress import lanes as lanes_module
from rearview.ingress.lane import Lane, LaneSender
from rearview.ingress.lanes import Lanes
from rearview.replica import build as loading
from rearview.replica.stage import Stage
from rearview.transport.codec import Versions
from rearview.transport.links import LinkServer
from support.peers import Peer, peers
from support.planted import SlowPrepare
from support.raw_stream import OPERATORS, eventually, null_config, quickly_stopped

pytestmark = pytest.mark.integration

SPANS = ((OPERATORS[0],), OPERATORS[1:3], (OPERATORS[3],))


@dataclass
class Fleet:
    """Stages and one ingress's view of them."""

    lanes: Lanes
    stages: list[Stage]
    frames: list[Frame[Any]] = field(default_factory=list)
    lost_lanes: list[tuple[str, int, Reason]] = field(default_factory=list)
    drains: list[tuple[str, int]] = field(default_factory=list)

    def describe(self) -> None:
        self.lanes.update([stage.describe() for stage in self.stages])

    async def open(self, spec: SessionSpec | None = None, epoch: int = 1) -> Lane:
        self.describe()
        return await self.lanes.open(spec or new_spec(), epoch, self.lanes.choose({}))

    def send(self, lane: Lane, ordinal: int) -> None:
        payload = np.full(3, ordinal, np.uint8)
        LaneSender().send_frame(lane, Frame(lane.session_id, ordinal, {PICTURE: payload}, epoch=lane.epoch))

    @property
    def used(self) -> list[int]:
        return [stage.num_sessions for stage in self.stages]


def new_spec() -> SessionSpec:
    return SessionSpec(uuid.uuid4().hex, 64, 64, 2, Settings(prompt="a"))


def lease(session_id: str, epoch: int, replicas: tuple[str, ...]) -> Lease:
    return Lease(session_id, "t", replicas, "i", epoch, 0.0, 0.0)


def lanes_of(config: ServiceConfig, found: list[Fleet]) -> Lanes:
    """Lanes of an ingress that tells `found[0]` what comes back."""
    return Lanes(
        [span.name for span in config.spans],
        config.link,
        "node",
        on_frame=lambda message: found[0].frames.append(message),
        on_lane_lost=lambda session_id, epoch, why: found[0].lost_lanes.append(
            (session_id, epoch, why.reason)
        ),
        on_lane_drains=lambda session_id, epoch: found[0].drains.append((session_id, epoch)),
        source=lambda *_: pytest.fail("nothing is pulled"),
    )


@asynccontextmanager
async def fleet(replicas: int = 1, slots: int = 4) -> AsyncIterator[Fleet]:
    config = null_config(spans=SPANS, slots=slots, replicas=replicas)
    stages = [
        Stage(config, index, f"{span.name}#{n}", "node")
        for index, span in enumerate(config.spans)
        for n in range(replicas)
    ]
    found: list[Fleet] = []
    lanes = lanes_of(config, found)
    found.append(Fleet(lanes, stages))
    with quickly_stopped():
        await asyncio.gather(lanes.start(), *(stage.start() for stage in stages))
        try:
            yield found[0]
        finally:
            await lanes.stop()
            await asyncio.gather(*(stage.stop() for stage in stages))


async def test_a_frame_passes_every_span_of_its_lane_once_and_in_order() -> None:
    async with fleet() as f:
        lane = await f.open()
        for ordinal in range(10):
            f.send(lane, ordinal)
        await eventually(lambda: len(f.frames) == 10)
        assert [message.ordinal for message in f.frames] == list(range(10))
        spans = [span.name for span in f.stages[0]._config.spans]
        assert all([t.span for t in message.timings] == spans for message in f.frames)


async def test_every_frame_of_a_session_meets_the_same_replicas_while_sessions_spread() -> None:
    async with fleet(replicas=2) as f:
        lanes = [await f.open() for _ in range(4)]
        for ordinal in range(6):
            for lane in lanes:
                f.send(lane, ordinal)
        await eventually(lambda: len(f.frames) == 24)
        assert f.used == [2] * 6
        for stage in f.stages:
            described = stage.describe()
            mine = {lane.session_id for lane in lanes if described["replica_id"] in lane.replicas}
            assert set(described["sessions"]) == mine
            assert described["frames_by_session"] == dict.fromkeys(mine, 6)


async def test_a_closed_lane_gives_every_slot_back() -> None:
    async with fleet() as f:
        lane = await f.open()
        assert f.used == [1, 1, 1]
        f.lanes.close(lane)
        f.lanes.close(lane)
        await eventually(lambda: f.used == [0, 0, 0])


async def test_a_lane_that_one_replica_refuses_holds_no_slot() -> None:
    async with fleet(slots=1) as f:
        lane = await f.open()
        replicas = lane.replicas
        spec = new_spec()
        with pytest.raises(Refused) as refused:
            await f.lanes.open(spec, 1, replicas)
        assert refused.value.reason is Reason.NO_CAPACITY
        # The refusal comes first; the others are told then, over their links.
        await eventually(lambda: f.used == [1, 1, 1])
        f.lanes.close(lane)
        await f.lanes.open(spec, 2, replicas)


async def test_an_open_that_is_cancelled_holds_no_slot(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(loading, "load_model", lambda *_: SlowPrepare(0.05))
    async with fleet() as f:
        for turns in (1, 3, 10, 30, 100):
            opening = asyncio.create_task(f.open())
            for _ in range(turns):
                await asyncio.sleep(0)
            opening.cancel()
            await asyncio.gather(opening, return_exceptions=True)
            if not opening.cancelled():
                f.lanes.close(opening.result())
            await eventually(lambda: f.used == [0, 0, 0])
        await f.open()


async def test_a_fault_in_a_replica_keeps_its_error_id(monkeypatch: pytest.MonkeyPatch) -> None:
    async with fleet() as f:

        def fail(*_: object) -> None:
            raise KeyError("secret")

        monkeypatch.setattr(f.stages[1]._sessions, "begin", fail)
        with pytest.raises(Fault) as fault:
            await f.open()
        assert fault.value.metadata["error_id"]
        assert "secret" not in str(fault.value)
        await eventually(lambda: f.used == [0, 0, 0])


@pytest.mark.parametrize("described", [True, False], ids=["still described", "described no more"])
@pytest.mark.parametrize("span", range(len(SPANS)))
async def test_a_replica_that_is_lost_is_told_once(span: int, described: bool) -> None:
    async with fleet(replicas=2) as f:
        lane = await f.open()
        stage = next(s for s in f.stages if s.describe()["replica_id"] == lane.replicas[span])
        f.stages.remove(stage)
        if not described:  # Serve may forget a replica before its links close.
            f.describe()
        await stage.stop()
        lost = (lane.session_id, lane.epoch, Reason.REPLICA_LOST)
        await eventually(lambda: lost in f.lost_lanes)
        await asyncio.sleep(0.02)
        assert f.lost_lanes == [lost]
        assert lane.replicas[span] not in f.lanes._fleet.replicas
        f.describe()
        assert await f.open()


async def test_a_replica_that_is_gone_is_chosen_once_at_most() -> None:
    async with fleet(replicas=2) as f:
        f.describe()
        gone = f.stages.pop(0)
        await gone.stop()
        reasons = []
        for _ in range(2):
            try:
                await f.lanes.open(new_spec(), 1, f.lanes.choose({}))
            except Refused as error:
                reasons.append(error.reason)
        assert reasons in ([], [Reason.REPLICA_LOST])  # None, if its link has ended before.


async def test_a_break_between_two_spans_is_told_though_the_ingress_reaches_both() -> None:
    async with fleet() as f:
        lane = await f.open(epoch=7)
        for link in tuple(f.stages[0]._pool._links.values()):
            link.close()
        lost = (lane.session_id, 7, Reason.REPLICA_LOST)
        await eventually(lambda: lost in f.lost_lanes)
        assert f.lost_lanes == [lost]
        assert set(f.lanes._fleet.replicas) == set(lane.replicas)


async def test_a_draining_replica_gets_no_new_session() -> None:
    async with fleet(replicas=2) as f:
        lane = await f.open()
        stage = f.stages[0]
        assert stage.describe()["replica_id"] in lane.replicas
        draining = asyncio.create_task(stage.drain(30.0))
        await eventually(lambda: stage.describe()["replica_id"] not in f.lanes._fleet.replicas)
        for _ in range(3):
            assert stage.describe()["replica_id"] not in (await f.open()).replicas
        f.send(lane, 0)
        await eventually(lambda: len(f.frames) == 1)
        f.lanes.close(lane)
        await draining


async def test_a_replica_that_does_not_answer_an_open_is_given_up(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lanes_module, "OPEN_TIMEOUT_S", 0.05)
    async with fleet() as f:
        silent = LinkServer(null_config().link, "node", on_message=lambda *_: None, on_closed=lambda _: None)
        address = str(await silent.start())
        stage = f.stages[1]
        f.stages[1] = _Described({**stage.describe(), "address": address})  # type: ignore[call-overload]
        with pytest.raises(Refused) as refused:
            await f.open()
        assert refused.value.reason is Reason.REPLICA_LOST
        assert refused.value.retry_after_s is not None
        f.stages[1] = stage
        await eventually(lambda: f.used == [0, 0, 0])
        await silent.stop()


@dataclass
class _Described:
    description: dict[str, object]

    def describe(self) -> dict[str, object]:
        return self.description


async def test_nothing_is_placed_before_every_span_has_a_replica() -> None:
    async with fleet() as f:
        assert not f.lanes.fleet.serves(f.lanes.fleet.spans)
        f.lanes.update([stage.describe() for stage in f.stages[:2]])
        assert not f.lanes.fleet.serves(f.lanes.fleet.spans)
        with pytest.raises(Refused) as refused:
            f.lanes.choose({})
        assert refused.value.reason is Reason.NO_CAPACITY
        f.describe()
        assert f.lanes.fleet.serves(f.lanes.fleet.spans)


@asynccontextmanager
async def another(f: Fleet) -> AsyncIterator[Fleet]:
    """A second ingress before the same stages."""
    found: list[Fleet] = []
    found.append(Fleet(lanes_of(f.stages[0]._config, found), f.stages))
    await found[0].lanes.start()
    found[0].describe()
    try:
        yield found[0]
    finally:
        await found[0].lanes.stop()


async def test_another_ingress_adopts_a_session_and_goes_on_where_it_stood() -> None:
    async with fleet() as f, another(f) as other:
        lane = await f.open(epoch=3)
        for ordinal in range(3):
            f.send(lane, ordinal)
        await eventually(lambda: len(f.frames) == 3)
        adopted, standing = await other.lanes.attach(lease(lane.session_id, 4, lane.replicas))
        assert (adopted.epoch, adopted.replicas) == (4, lane.replicas)
        assert [each["expected"] for each in standing] == [3, 3, 3]
        await eventually(lambda: f.lost_lanes == [(lane.session_id, 3, Reason.TAKEN_OVER)])
        other.send(adopted, 3)
        # What nobody had acknowledged comes again, before anything new.
        await eventually(lambda: [frame.ordinal for frame in other.frames] == [0, 1, 2, 3])
        assert all(frame.epoch == 4 for frame in other.frames)
        f.lanes.close(lane)  # Of a former owner: it ends nothing.
        other.send(adopted, 4)
        await eventually(lambda: other.frames[-1].ordinal == 4)
        assert f.used == [1, 1, 1]
        other.lanes.close(adopted)
        await eventually(lambda: f.used == [0, 0, 0])


async def test_a_session_that_is_not_there_cannot_be_adopted() -> None:
    async with fleet() as f:
        f.describe()
        with pytest.raises(NotFound) as missing:
            await f.lanes.attach(lease(new_spec().session_id, 2, f.lanes.choose({})))
        assert missing.value.reason is Reason.SESSION_UNKNOWN
        assert f.used == [0, 0, 0]


async def test_a_session_of_a_newer_epoch_cannot_be_adopted() -> None:
    async with fleet() as f, another(f) as other:
        lane = await f.open(epoch=3)
        with pytest.raises(Refused) as fenced:
            await other.lanes.attach(lease(lane.session_id, 2, lane.replicas))
        assert fenced.value.reason is Reason.TAKEN_OVER
        f.send(lane, 0)
        await eventually(lambda: len(f.frames) == 1)
        assert f.used == [1, 1, 1]


async def test_the_last_span_lets_go_of_what_is_acknowledged() -> None:
    async with fleet() as f:
        lane = await f.open()
        LaneSender().acknowledge(lane, 0)  # Nothing has come back: there is nothing to say.
        for ordinal in range(6):
            f.send(lane, ordinal)
        await eventually(lambda: len(f.frames) == 6)
        runner = f.stages[-1]._runner
        assert runner is not None

        async def kept() -> list[int]:
            return await runner.call(
                lambda engine: [f.ordinal for f in engine.standing(lane.session_id).retained]
            )

        assert await kept() == list(range(6))
        LaneSender().acknowledge(lane, 3)

        async def is_released() -> bool:
            return await kept() == [4, 5]

        await eventually(is_released)
        assert {link.version for link in lane.links} == {lane.codec.version}


async def test_replicas_tell_what_changes_of_them_without_being_asked() -> None:
    async with fleet(slots=4) as f:

        def free() -> set[int]:
            return {replica.free_slots for replica in f.lanes.fleet.replicas.values()}

        lane = await f.open()
        await eventually(lambda: free() == {3})
        f.lanes.close(lane)
        await eventually(lambda: free() == {4})


async def test_what_a_replica_has_told_since_it_was_asked_is_newer_than_its_answer() -> None:
    async with fleet(slots=4) as f:
        answers, asked_s = [stage.describe() for stage in f.stages], time.monotonic()
        f.lanes.update(answers, asked_s)
        await f.open()

        def told() -> set[int]:
            return {replica.free_slots for replica in f.lanes.fleet.replicas.values()}

        await eventually(lambda: told() == {3})
        f.lanes.update(answers, asked_s)
        assert told() == {3}
        f.lanes.update(answers)
        assert told() == {4}


async def test_a_replica_of_the_release_before_is_not_asked_how_a_session_stands() -> None:
    """It would close the link, and with it lose every lane over it."""
    async with peers(Peer()) as (_, mine):
        before = Peer(versions=Versions(1, 2))
        address = await before.start()
        assert await lanes_module._is_open(mine.pool, [address], lease("0" * 32, 1, ("before",)))
        assert (before.messages, mine.closed) == ([], [])
        await before.stop()
