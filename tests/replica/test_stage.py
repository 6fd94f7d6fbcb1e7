"""One replica, driven over its link as an ingress would: fencing, ownership, slots, drain."""

from __future__ import annotations

import asyncio
import socket
from urllib.request import urlopen

import pytest
from rearview.config import load_config
from rearview.contract.frame import PICTURE
from rearview.contract.session import SessionSpec
from rearview.contract.settings import Settings
from rearview.engine.engine import Engine
from rearview.engine.rows import StepResult
from rearview.replica.stage import Stage
from rearview.transport.wire import Kind
from support.owner import driven, engine_holds, spec
from support.raw_stream import OPERATORS, eventually, quickly_stopped

pytestmark = pytest.mark.integration


async def test_frames_come_out_in_order_with_their_epoch_and_timing() -> None:
    async with driven() as (stage, (owner,)):
        session = spec()
        assert await owner.open(session, epoch=3) is None
        for ordinal in range(20):
            owner.send(session, ordinal, epoch=3)
        await eventually(lambda: len(owner.frames) == 20)
        assert [f.ordinal for f in owner.frames] == list(range(20))
        assert [int(f.planes[PICTURE][0]) for f in owner.frames if f.planes is not None] == list(range(20))
        assert {f.epoch for f in owner.frames} == {3}
        assert all([t.span for t in f.timings] == [stage.describe()["span"]] for f in owner.frames)
        assert stage.describe()["sessions"] == [session.session_id]


async def test_frames_of_another_epoch_are_fenced() -> None:
    async with driven() as (_, (owner,)):
        session = spec()
        assert await owner.open(session, epoch=2) is None
        owner.send(session, 0, epoch=1)
        owner.send(session, 0, epoch=3)
        owner.send(spec(), 0)
        await owner.settle()
        assert owner.frames == []
        owner.send(session, 0, epoch=2)
        await eventually(lambda: len(owner.frames) == 1)


async def test_an_open_of_an_old_epoch_is_refused_also_after_the_session_has_ended() -> None:
    async with driven() as (stage, (owner,)):
        session = spec()
        assert await owner.open(session, epoch=2) is None
        for epoch in (1, 2):
            assert await owner.open(session, epoch=epoch) == "TAKEN_OVER"
        owner.close(session, epoch=2)
        assert await owner.open(session, epoch=2) == "TAKEN_OVER"
        assert stage.num_sessions == await engine_holds(stage) == 0
        assert await owner.open(session, epoch=3) is None


async def test_a_newer_epoch_takes_the_session_over() -> None:
    async with driven(slots=1, owners=2) as (stage, (old, new)):
        session = spec()
        assert await old.open(session, epoch=1) is None
        old.send(session, 0, epoch=1)
        await eventually(lambda: len(old.frames) == 1)
        assert await new.open(session, epoch=2) is None
        assert stage.num_sessions == await engine_holds(stage) == 1
        await eventually(lambda: bool(old.told))
        assert old.told == [(Kind.LOST, {"session_id": session.session_id, "epoch": 1})]
        old.send(session, 1, epoch=1)
        old.close(session, epoch=1)
        await old.settle()
        new.send(session, 0, epoch=2)
        await eventually(lambda: len(new.frames) == 1)
        assert len(old.frames) == 1
        await old.stop()  # The former owner's link means nothing to the session any more.
        new.send(session, 1, epoch=2)
        await eventually(lambda: len(new.frames) == 2)


async def test_settings_of_another_epoch_change_nothing() -> None:
    async with driven() as (stage, (owner,)):
        session = spec("old")
        assert await owner.open(session, epoch=2) is None
        owner.announce(session, 1, Settings(prompt="new"), epoch=1)
        await owner.settle()
        assert stage._runner is not None
        known = await stage._runner.call(lambda engine: dict(engine._sessions[session.session_id].settings))
        assert [settings.prompt for settings in known.values()] == ["old"]


async def test_a_full_replica_refuses_and_a_close_makes_room() -> None:
    async with driven(slots=2) as (stage, (owner,)):
        first, second, third = spec(), spec(), spec()
        assert await owner.open(first) is None
        assert await owner.open(second) is None
        assert stage.describe()["free_slots"] == 0
        assert await owner.open(third) == "NO_CAPACITY"
        owner.close(first, epoch=9)
        assert await owner.open(third, epoch=2) == "NO_CAPACITY"
        owner.close(first)
        assert await owner.open(third, epoch=3) is None
        assert await engine_holds(stage) == 2


async def test_a_close_that_overtakes_its_open_leaves_no_slot_taken() -> None:
    async with driven(slots=1) as (stage, (owner,)):
        for _ in range(20):
            session = spec()
            opening = asyncio.create_task(owner.open(session))
            await asyncio.sleep(0)
            owner.close(session)
            await opening
            await owner.settle()
            assert stage.num_sessions == await engine_holds(stage) == 0
            assert stage.describe()["free_slots"] == 1


async def test_two_opens_of_one_session_at_a_time_leave_the_newer_one() -> None:
    async with driven(slots=1) as (stage, (owner,)):
        session = spec()
        results = await asyncio.gather(*(owner.open(session, epoch) for epoch in (1, 2, 3)))
        assert results[-1] is None
        assert stage.num_sessions == await engine_holds(stage) == 1
        owner.send(session, 0, epoch=3)
        await eventually(lambda: len(owner.frames) == 1)
        assert owner.frames[0].epoch == 3


async def test_an_open_that_cannot_reach_the_next_replica_takes_no_slot() -> None:
    async with driven(slots=1) as (stage, (owner,)):
        assert await owner.open(spec(), to="node|/nonexistent/link|127.0.0.1|1") == "REPLICA_LOST"
        assert stage.num_sessions == await engine_holds(stage) == 0
        assert await owner.open(spec()) is None


async def test_an_open_that_fails_in_the_engine_takes_no_slot(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(self: Engine, session: SessionSpec) -> None:
        really_open(self, session)
        raise KeyError("planted")

    really_open = Engine.open
    async with driven(slots=1) as (stage, (owner,)):
        monkeypatch.setattr(Engine, "open", fail)
        assert await owner.open(spec()) == "INTERNAL"
        monkeypatch.undo()
        assert stage.num_sessions == await engine_holds(stage) == 0
        assert await owner.open(spec()) is None


async def test_an_open_that_makes_no_sense_is_refused_and_the_link_goes_on() -> None:
    async with driven() as (stage, (owner,)):
        content = {"session": {"width": "wide"}, "epoch": 1, "next": owner.address}
        assert (await owner.link.request(Kind.OPEN, content))["reason"] == "INTERNAL"
        assert await owner.open(spec()) is None
        assert stage.num_sessions == 1


async def test_an_owner_that_goes_frees_its_sessions_after_the_grace_and_no_others() -> None:
    async with driven(slots=4, owners=2, link={"orphan_grace_s": 0.05}) as (stage, (gone, stays)):
        mine = spec()
        for _ in range(3):
            assert await gone.open(spec()) is None
        assert await stays.open(mine) is None
        await gone.stop()
        await eventually(lambda: stage.describe()["sessions"] == [mine.session_id])
        assert await engine_holds(stage) == 1
        stays.send(mine, 0)
        await eventually(lambda: len(stays.frames) == 1)


async def test_the_owner_is_told_when_the_next_replica_is_gone() -> None:
    async with driven(owners=2) as (stage, (owner, next_replica)):
        lost, kept = spec(), spec()
        assert await owner.open(lost, epoch=4, to=next_replica.address) is None
        assert await owner.open(kept) is None
        await next_replica.stop()
        await eventually(lambda: bool(owner.told))
        assert owner.told == [(Kind.LOST, {"session_id": lost.session_id, "epoch": 4, "hop": 0})]
        assert stage.describe()["sessions"] == sorted([lost.session_id, kept.session_id])
        assert stage.describe()["orphans"] == []
        owner.send(kept, 0)
        await eventually(lambda: len(owner.frames) == 1)
        owner.close(lost, epoch=4)
        await eventually(lambda: stage.describe()["sessions"] == [kept.session_id])
        assert await engine_holds(stage) == 1


async def test_a_draining_replica_refuses_tells_and_waits_for_its_sessions() -> None:
    async with driven() as (stage, (owner,)):
        session = spec()
        assert await owner.open(session) is None
        draining = asyncio.create_task(stage.drain(30.0))
        await eventually(lambda: (Kind.DRAINING, {}) in owner.told)
        assert await owner.open(spec()) == "DRAINING"
        assert stage.describe()["draining"]
        assert stage.describe()["free_slots"] == 0
        owner.send(session, 0)
        await eventually(lambda: len(owner.frames) == 1)
        assert not draining.done()
        owner.close(session)
        await asyncio.wait_for(draining, 10)


async def test_a_drain_waits_no_longer_than_its_grace() -> None:
    async with driven() as (stage, (owner,)):
        assert await owner.open(spec()) is None
        await asyncio.wait_for(stage.drain(0.05), 10)
        assert stage.num_sessions == 1


async def test_the_metrics_of_a_span_are_at_the_port_that_its_configuration_names() -> None:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    spans = [{"name": "fused", "operators": OPERATORS, "metrics_port": port, "slots": 3}]
    config = load_config({"model": {"checkpoint": "null"}, "spans": spans})
    stage = Stage(config, 0, "stage", "node")
    with quickly_stopped():
        await stage.start()
    try:
        assert stage.describe()["metrics_url"] == f"http://127.0.0.1:{port}/metrics"
        with await asyncio.to_thread(urlopen, stage.describe()["metrics_url"], timeout=10) as response:
            assert b'rearview_slots{span="fused"} 3.0' in await asyncio.to_thread(response.read)
    finally:
        await stage.stop()


async def test_health_follows_the_engine_thread() -> None:
    async with driven() as (stage, _):
        stage.check_health()
        assert stage._runner is not None
        await asyncio.to_thread(stage._runner.stop)
        with pytest.raises(RuntimeError, match="engine"):
            stage.check_health()


async def test_a_command_that_fails_does_not_stop_the_engine() -> None:
    def fail(engine: Engine) -> None:
        raise KeyError("planted")

    async with driven() as (stage, (owner,)):
        session = spec()
        assert await owner.open(session) is None
        assert stage._runner is not None
        stage._runner.post(fail)
        with pytest.raises(KeyError):
            await stage._runner.call(fail)
        owner.send(session, 0)
        await eventually(lambda: len(owner.frames) == 1)
        stage.check_health()


async def test_a_replica_whose_engine_has_died_says_so_before_its_next_beat(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def fail(self: Engine, now: float) -> StepResult:
        raise KeyError("planted")

    async with driven() as (stage, (owner,)):
        assert stage._runner is not None
        monkeypatch.setattr(Engine, "step", fail)
        stage._runner.post(lambda engine: engine.flush("s"))
        await eventually(lambda: stage._runner is not None and not stage._runner.alive)
        assert await owner.open(spec()) == "REPLICA_LOST", "another one may do"
        assert stage.num_sessions == 0


async def test_a_frame_under_settings_that_were_never_announced_harms_no_other_session() -> None:
    async with driven() as (stage, (owner,)):
        first, second = spec(), spec()
        assert await owner.open(first) is None
        assert await owner.open(second) is None
        owner.send(first, 0, version=77)
        owner.send(second, 0)
        await eventually(lambda: second.session_id in {frame.session_id for frame in owner.frames})
        stage.check_health()
