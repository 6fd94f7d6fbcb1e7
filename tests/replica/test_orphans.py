"""Sessions that outlive the links that fed them: orphaned, adopted, fenced, and never shown a frame twice."""

from __future__ import annotations

import asyncio
from pathlib import Path

import numpy as np
import pytest
import torch
from rearview.config import load_config
from rearview.contract.frame import PICTURE
from rearview.contract.memories import BankSettings
from rearview.contract.session import SessionSpec
from rearview.contract.settings import Settings
from rearview.replica import outflow
from rearview.replica.stage import Stage
from rearview.transport.wire import Kind
from support.owner import Owner, driven, engine_holds, spec, started
from support.raw_stream import OPERATORS, eventually, null_config
from support.tiny import SIZE, random_frames, write_tiny_checkpoint

pytestmark = pytest.mark.integration

SPANS = ((OPERATORS[0],), OPERATORS[1:3], (OPERATORS[3],))


async def is_orphan(stage: Stage, session: SessionSpec) -> None:
    await eventually(lambda: stage.describe()["orphans"] == [session.session_id])


async def test_a_second_owner_adopts_an_orphan_and_pictures_go_on_in_order() -> None:
    async with driven(owners=2) as (stage, (first, second)):
        session = spec()
        assert await first.open(session) is None
        for ordinal in range(6):
            first.send(session, ordinal)
        await eventually(lambda: first.ordinals == list(range(6)))
        first.ack(session, 3)
        await first.settle()
        await first.stop()
        await is_orphan(stage, session)
        assert stage.describe()["free_slots"] == 2  # It would yield its own.
        assert stage.num_sessions == await engine_holds(stage) == 1
        reply = await second.attach(session, epoch=2)
        assert reply["place"] == 15
        assert (reply["expected"], reply["settings"]) == (6, [0])
        assert reply["committed"] == {"0": 5, "1": 5}
        assert reply["retained"] == [[14, 4], [15, 5]]
        assert stage.describe()["orphans"] == []
        for ordinal in range(6, 12):
            second.send(session, ordinal, epoch=2)
        await eventually(lambda: len(second.frames) >= 8)
        await second.settle()
        assert second.ordinals == list(range(4, 12))
        assert {frame.epoch for frame in second.frames} == {2}
        assert [(f.place, f.frame_index) for f in second.frames] == [(n + 10, n + 100) for n in range(4, 12)]


async def test_frames_that_no_owner_took_are_kept_for_the_next_one() -> None:
    async with driven(owners=2) as (stage, (first, second)):
        session = spec()
        assert await first.open(session) is None
        for ordinal in range(5):
            first.send(session, ordinal)
        await first.stop()  # Whatever has come back by then: nothing of it was acknowledged.
        await is_orphan(stage, session)
        reply = await second.attach(session, epoch=2)
        sent = reply["expected"]
        for ordinal in range(sent, 8):
            second.send(session, ordinal, epoch=2)
        await eventually(lambda: len(second.frames) == 8)
        assert second.ordinals == list(range(8))


async def test_a_lane_that_is_adopted_from_its_end_loses_and_doubles_nothing() -> None:
    async with started(null_config(spans=SPANS), owners=2) as (stages, (first, second)):
        session = spec()
        assert await first.open(session) is None
        for ordinal in range(7):
            if ordinal == 3:
                first.announce(session, 1, Settings("b"))
            first.send(session, ordinal, version=int(ordinal >= 3))
        await eventually(lambda: len(first.frames) >= 2)
        taken = first.ordinals[-1]
        first.ack(session, taken)
        for stage in stages:
            await first.dial([stage])
            await first.settle()
        await first.stop()
        for stage in stages:
            await is_orphan(stage, session)
        replies = await second.attach_lane(session, epoch=2)
        expected = replies[0]["expected"]
        assert replies[0]["place"] == expected + 9
        for ordinal in range(expected, 10):
            second.send(session, ordinal, epoch=2, version=1)
        await eventually(lambda: bool(second.frames) and second.ordinals[-1] == 9)
        await second.settle()
        assert second.ordinals == list(range(taken + 1, 10))
        assert [f.settings_version for f in second.frames] == [int(n >= 3) for n in second.ordinals]
        assert not any(frame.is_lost for frame in second.frames)


async def test_frames_and_settings_that_meet_a_span_too_early_for_it_come_again() -> None:
    """The last span obeys the new owner while the first one still sends under the old epoch."""
    async with started(null_config(spans=SPANS), owners=2) as (stages, (first, second)):
        session = spec()
        assert await first.open(session) is None
        first.send(session, 0)
        await eventually(lambda: first.ordinals == [0])
        first.ack(session, 0)
        for hop in (2, 1):
            assert "reason" not in await second.attach(session, 2, hop)
        first.announce(session, 1, Settings("b"))
        for ordinal in (1, 2, 3):
            first.send(session, ordinal, version=1)
        await eventually(lambda: stages[0].describe()["frames_by_session"][session.session_id] == 4)
        assert second.frames == []
        reply = await second.attach(session, 2, hop=0)
        assert reply["expected"] == 4
        await eventually(lambda: len(second.frames) >= 3)
        assert [f for f in second.ordinals if f > 0] == [1, 2, 3]
        assert not any(frame.is_lost for frame in second.frames)


async def test_an_orphan_is_closed_when_the_grace_is_over() -> None:
    async with driven(slots=1, owners=2, link={"orphan_grace_s": 0.05}) as (stage, (first, second)):
        session = spec()
        assert await first.open(session) is None
        assert await second.open(spec()) == "NO_CAPACITY"
        await first.stop()
        await eventually(lambda: stage.num_sessions == 0)
        assert await engine_holds(stage) == 0
        assert (await second.attach(session, epoch=2))["reason"] == "SESSION_UNKNOWN"
        assert await second.open(spec()) is None


async def test_an_orphan_yields_its_slot_to_a_new_session_and_no_other_session_does() -> None:
    async with driven(slots=2, owners=2, link={"orphan_grace_s": 60.0}) as (stage, (first, second)):
        mine, orphaned = spec(), spec()
        assert await second.open(mine) is None
        assert await first.open(orphaned) is None
        assert stage.describe()["free_slots"] == 0
        await first.stop()
        await eventually(lambda: stage.describe()["free_slots"] == 1)
        assert stage.describe()["orphans"] == [orphaned.session_id]
        assert await second.open(spec()) is None
        assert (await second.attach(orphaned, epoch=2))["reason"] == "SESSION_UNKNOWN"
        assert await second.open(spec()) == "NO_CAPACITY"
        assert stage.describe()["free_slots"] == 0
        assert await engine_holds(stage) == 2


async def test_an_open_that_is_refused_or_needs_no_further_slot_costs_no_orphan_its_own() -> None:
    async with driven(slots=2, owners=2, link={"orphan_grace_s": 60.0}) as (stage, (first, second)):
        mine, orphaned = spec(), spec()
        assert await second.open(mine) is None
        assert await first.open(orphaned) is None
        await first.stop()
        await is_orphan(stage, orphaned)
        assert await second.open(mine, epoch=2) is None
        assert await second.open(mine, epoch=1) == "TAKEN_OVER"
        assert await second.open(spec(), to="node|/nonexistent/link|127.0.0.1|1") == "REPLICA_LOST"
        assert stage.describe()["orphans"] == [orphaned.session_id]
        assert await engine_holds(stage) == 2


async def test_the_grace_is_counted_by_the_clock_that_the_replica_was_given() -> None:
    config, now_s, timers = null_config(slots=1), 5.0, []
    stage = Stage(
        config, 0, "stage", "node", clock=lambda: now_s, call_later=lambda *timer: timers.append(timer)
    )
    await stage.start()
    owner = Owner(config)
    await owner.start([stage])
    try:
        session = spec()
        assert await owner.open(session) is None
        await owner.stop()
        await is_orphan(stage, session)
        ((delay_s, close),) = timers
        assert delay_s == config.link.orphan_grace_s == 60.0
        now_s += 59.9
        close()
        assert stage.num_sessions == 1
        now_s += 0.2
        close()
        assert stage.num_sessions == await engine_holds(stage) == 0
    finally:
        await stage.stop()


async def test_a_lost_next_hop_is_told_with_its_place_and_can_be_replaced() -> None:
    async with driven(owners=3) as (stage, (owner, lost, instead)):
        session = spec()
        assert await owner.open(session, to=lost.address) is None
        for ordinal in range(3):
            owner.send(session, ordinal)
        await eventually(lambda: lost.ordinals == [0, 1, 2])
        lost.ack(session, 1)
        await lost.settle()
        await lost.stop()
        await eventually(lambda: (Kind.LOST) in [kind for kind, _ in owner.told])
        assert owner.told == [(Kind.LOST, {"session_id": session.session_id, "epoch": 1, "hop": 0})]
        for ordinal in (3, 4):
            owner.send(session, ordinal)
        await eventually(lambda: stage.describe()["frames_by_session"][session.session_id] == 5)
        reply = await owner.attach(session, epoch=1, to=instead.address)
        assert reply["retained"] == [[12, 2], [13, 3], [14, 4]]
        owner.send(session, 5)
        await eventually(lambda: len(instead.frames) == 4)
        assert instead.ordinals == [2, 3, 4, 5]
        assert len(owner.told) == 1


async def test_a_former_owner_is_told_and_can_change_nothing() -> None:
    async with driven(owners=2) as (stage, (old, new)):
        session = spec()
        assert await old.open(session, epoch=3) is None
        old.send(session, 0, epoch=3)
        await eventually(lambda: old.ordinals == [0])
        old.ack(session, 0, epoch=3)
        await old.settle()
        assert "reason" not in await new.attach(session, epoch=5)
        await eventually(lambda: bool(old.told))
        assert old.told == [(Kind.LOST, {"session_id": session.session_id, "epoch": 3})]
        old.send(session, 1, epoch=3, planes={PICTURE: np.full(4, 99, np.uint8)})
        old.announce(session, 1, Settings("theirs"), epoch=3)
        old.ack(session, 50, epoch=3)
        old.close(session, epoch=3)
        for epoch in (3, 4):
            assert (await old.attach(session, epoch))["reason"] == "TAKEN_OVER"
        new.send(session, 1, epoch=5)
        await eventually(lambda: new.ordinals == [1])
        assert new.frames[0].planes is not None
        assert int(new.frames[0].planes[PICTURE][0]) == 1
        reply = await new.attach(session, epoch=5, to=None)
        assert (reply["settings"], reply["retained"]) == ([0], [[11, 1]])
        assert new.told == []
        await old.stop()
        new.send(session, 2, epoch=5)
        await eventually(lambda: new.ordinals == [1, 2])
        assert stage.describe()["orphans"] == []


async def test_what_is_not_here_cannot_be_adopted() -> None:
    async with driven() as (stage, (owner,)):
        session = spec()
        assert (await owner.attach(session, epoch=1))["reason"] == "SESSION_UNKNOWN"
        assert await owner.open(session) is None
        assert (await owner.attach(session, 2, to="node|/nowhere|127.0.0.1|1"))["reason"] == "REPLICA_LOST"
        owner.send(session, 0)
        await eventually(lambda: owner.ordinals == [0]), "a failed adoption changes nothing"
        owner.close(session)
        assert (await owner.attach(session, epoch=2))["reason"] == "SESSION_UNKNOWN"
        assert (await owner.link.request(Kind.ATTACH, {"session_id": 3}))["reason"] == "INTERNAL"
        assert stage.num_sessions == 0


async def test_a_hop_acknowledges_every_few_frames_to_the_one_before() -> None:
    every = outflow.ACK_EVERY
    async with started(null_config(spans=SPANS)) as (stages, (owner,)):
        session = spec()
        assert await owner.open(session) is None
        for ordinal in range(3 * every):
            owner.send(session, ordinal)
        await eventually(lambda: len(owner.frames) == 3 * every)
        owner.ack(session, 2 * every - 1)
        await eventually(lambda: len(owner.acks) == 3)
        assert [ack.ordinal for ack in owner.acks] == [every - 1, 2 * every - 1, 3 * every - 1]
        for stage, kept in zip(stages, (0, 0, every), strict=True):

            async def retained(stage: Stage = stage) -> int:
                assert stage._runner is not None
                return await stage._runner.call(lambda e: len(e.standing(session.session_id).retained))

            async def as_expected(kept: int = kept) -> bool:
                return await retained() == kept

            await eventually(as_expected)


@pytest.mark.parametrize("pipeline", [False, True], ids=["fused", "pipeline"])
async def test_an_adopted_bank_gives_the_pictures_of_a_session_that_was_never_interrupted(
    tmp_path: Path, pipeline: bool
) -> None:
    torch.set_num_threads(1)
    content = {
        "model": {
            "checkpoint": str(write_tiny_checkpoint(tmp_path / "tiny")),
            "dtype": "float64",
            "width": SIZE,
            "height": SIZE,
        },
        "bank": {"interval": 2, "fusion_threshold": -1.0},
        "link": {"secret": "s"},
    }
    if pipeline:
        content["topology"] = "pipeline"
        content["spans"] = [
            {"name": "first", "operators": OPERATORS[:2]},
            {"name": "second", "operators": OPERATORS[2:]},
        ]
    bank = BankSettings(interval=2, fusion_threshold=-1.0)
    frames = random_frames(10)
    pictures: list[list[bytes]] = []
    async with started(load_config(content), owners=3) as (stages, owners):
        for interrupted in (False, True):
            session = SessionSpec(spec().session_id, SIZE, SIZE, 2, Settings("a", 0.9), bank=bank)
            owner, epoch = owners[int(interrupted)], 1
            assert await owner.open(session) is None
            seen: dict[int, bytes] = {}
            for ordinal, frame in enumerate(frames):
                if interrupted and ordinal == 5:
                    await owner.settle()
                    await owner.stop()
                    seen |= shown(owner)
                    owner, epoch = owners[2], 2
                    await asyncio.gather(*(is_orphan(stage, session) for stage in stages))
                    replies = await owner.attach_lane(session, epoch)
                    assert replies[0]["expected"] == 5
                owner.send(session, ordinal, epoch, planes={PICTURE: frame.numpy()})
                if not interrupted:
                    await eventually(lambda o=owner, n=ordinal: len(o.frames) == n + 1)
            await eventually(lambda o=owner: bool(o.frames) and o.ordinals[-1] == len(frames) - 1)
            assert owner.ordinals == sorted(set(owner.ordinals))
            seen |= shown(owner)
            assert sorted(seen) == list(range(len(frames)))
            pictures.append([seen[n] for n in range(len(frames))])
            owner.close(session, epoch)
    assert len(set(pictures[0])) == len(frames)
    assert pictures[0] == pictures[1]


def shown(owner: Owner) -> dict[int, bytes]:
    return {f.ordinal: f.planes[PICTURE].tobytes() for f in owner.frames if f.planes is not None}
