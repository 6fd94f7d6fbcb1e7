"""Two clusters of one service that share a directory, as in an upgrade: sessions go on across them."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Sequence
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from typing import Any

import grpc
import pytest
from rearview.config import load_config
from rearview.contract.lease import Claim
from rearview.directory import MemoryDirectory
from rearview.errors import Reason
from rearview.ingress import clusters
from rearview.ingress.clusters import SETTLE_S, Clusters
from rearview.v1 import session_service_pb2 as sessions_pb
from rearview.v1 import translation_service_pb2 as pb
from support.raw_stream import OPERATORS, RawStream, eventually, index, null_config, quickly_stopped
from support.service import InProcessService, in_process_service

pytestmark = pytest.mark.integration

SPANS = ((OPERATORS[0],), OPERATORS[1:])
EXACT = pb.CONTINUITY_EXACT


@pytest.fixture
def hurried(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(clusters, "LOOK_EVERY_S", 0.05)
    monkeypatch.setattr(clusters, "SETTLE_S", 0.2)


class Upgraded:
    """An old cluster, and a newer one where a test begins it."""

    def __init__(self, takes_over: bool, **sections: Any) -> None:
        edge = {"drain_grace_s": 0.5, **sections.pop("ingress", {})}
        directory = {"takes_over": takes_over}
        self._config = null_config(spans=SPANS, ingress=edge, directory=directory, **sections)
        self._directory = MemoryDirectory(lease_s=self._config.directory.lease_s)

    @asynccontextmanager
    async def cluster(self, generation: str) -> AsyncIterator[InProcessService]:
        with quickly_stopped():
            async with in_process_service(
                self._config, 1, directory=self._directory, generation=generation
            ) as service:
                yield service

    async def lane(self, opened: pb.Opened) -> Sequence[str]:
        owner = await self._directory.owner_of(opened.session_id)
        assert owner is not None
        return owner.lease.lane


async def test_a_stream_of_the_old_cluster_goes_on_in_the_new_one(hurried: None) -> None:
    upgrade = Upgraded(takes_over=True)
    async with upgrade.cluster("1-") as old, RawStream(old.address) as first:
        opened = await first.start(drop_policy=pb.DROP_POLICY_LOSSLESS)
        for number in range(6):
            await first.frame(number, b"%d" % number)
        await first.read_answers(3)
        async with upgrade.cluster("2-") as new:
            end = await first.read_to_end()
            assert (end.code, end.reason) == (grpc.StatusCode.UNAVAILABLE, Reason.DRAINING)
            assert await upgrade.lane(opened) == ("2-span-0#0", "2-span-1#0"), "moved before its stream ends"
            answers = list(first.answers)
            async with RawStream(new.address) as second:
                again = await second.resume(opened, len(answers))
                assert again.continuity == EXACT
                for number in range(again.received_frames, 10):
                    await second.frame(number, b"%d" % number)
                await second.half_close()
                assert (await second.read_to_end()).code is grpc.StatusCode.OK
                answers += second.answers
            assert [index(answer) for answer in answers] == list(range(10))
            assert [answer.frame.image for answer in answers] == [b"%d" % number for number in range(10)]
            await eventually(lambda: all(s.num_sessions == 0 for s in (*old.stages, *new.stages)))


async def test_a_session_that_the_old_cluster_has_parked_is_fetched_from_it(hurried: None) -> None:
    upgrade = Upgraded(takes_over=True, recovery={"park_after_s": 0.0})
    async with upgrade.cluster("1-") as old:
        async with RawStream(old.address) as first:
            opened = await first.start(drop_policy=pb.DROP_POLICY_LOSSLESS)
            await first.frame(0, b"0")
            await first.read_answers(1)
        await eventually(lambda: all(stage.num_sessions == 0 for stage in old.stages))
        async with upgrade.cluster("2-") as new:
            await eventually(lambda: old.ingress.clusters.is_superseded)
            await asyncio.gather(*(server._yielding for server in old.servers if server._yielding))
            async with RawStream(new.address) as second:
                again = await second.resume(opened, 1)
                assert (again.continuity, again.received_frames) == (EXACT, 1)
                await second.frame(1, b"1")
                (answer,) = await second.read_answers(1)
                assert answer.frame.image == b"1"
                assert await upgrade.lane(opened) == ("2-span-0#0", "2-span-1#0")


async def test_new_sessions_are_for_the_new_cluster_alone(hurried: None) -> None:
    upgrade = Upgraded(takes_over=True)
    async with upgrade.cluster("1-") as old, upgrade.cluster("2-") as new:
        await eventually(lambda: old.ingress.draining)
        for _ in range(3):
            async with RawStream(new.address) as stream:
                assert (await upgrade.lane(await stream.start()))[0].startswith("2-")
        assert not new.ingress.clusters.is_superseded


async def test_clusters_that_do_not_take_over_leave_each_other_alone(hurried: None) -> None:
    """What happened before: the other's replicas are not known, so nothing of it can go on here."""
    upgrade = Upgraded(takes_over=False)
    async with upgrade.cluster("1-") as old, upgrade.cluster("2-") as new:
        async with RawStream(old.address) as first:
            opened = await first.start(drop_policy=pb.DROP_POLICY_LOSSLESS)
        async with RawStream(new.address) as second:
            asked = pb.Resume(session_id=opened.session_id, resume_token=opened.resume_token)
            await second.write(pb.TranslateRequest(resume=asked))
            assert (await second.read_to_end()).reason is Reason.REPLICA_LOST
        async with RawStream(old.address) as third:
            get = sessions_pb.GetSessionRequest(session_id=opened.session_id)
            assert (await third.sessions.GetSession(get, timeout=10)).session.session_id == opened.session_id
        assert not old.ingress.draining


async def test_a_session_that_the_new_model_cannot_take_stays_until_the_old_cluster_goes_and_is_reset(
    hurried: None,
) -> None:
    directory = MemoryDirectory(lease_s=15.0)

    def cluster(generation: str, model: str) -> AbstractAsyncContextManager[InProcessService]:
        content = {
            "model": {"checkpoint": model, "width": 64, "height": 64},
            "spans": [{"name": "fused", "operators": OPERATORS}],
            "ingress": {"port": 0, "drain_grace_s": 0.2},
            "directory": {"takes_over": True},
        }
        return in_process_service(load_config(content), 1, directory=directory, generation=generation)

    with quickly_stopped():
        async with cluster("2-", "chain:2+0.1") as new:
            async with cluster("1-", "chain:1+0.1") as old:
                async with RawStream(old.address) as first:
                    opened = await first.start(drop_policy=pb.DROP_POLICY_LOSSLESS)
                    await first.frame(0, b"0")
                    await first.read_answers(1)
                    assert (await first.read_to_end()).reason is Reason.DRAINING
                second = RawStream(new.address)
                assert (await second.resume(opened, 1)).continuity == EXACT
                owner = await directory.owner_of(opened.session_id)
                assert owner is not None
                assert owner.lease.lane == ("1-fused#0",), "the new ingress feeds the old replica"
            await second.frame(1, b"1")
            assert index((await second.read_answers(1))[0]) == 1
            told = [each.notice for each in second.received if each.WhichOneof("message") == "notice"]
            moved = [each.continuity for each in told if each.kind == pb.Notice.KIND_MOVED]
            assert moved == [pb.CONTINUITY_RESET]
            await second.__aexit__()


class Board:
    """Claims that a test writes."""

    def __init__(self) -> None:
        self.keys: list[str] = []

    async def claim(self, key: str, owner: str, ttl_s: float) -> Claim:
        self.keys.append(key)
        return Claim(key, owner, 1, 0.0)

    async def claims(self, prefix: str = "") -> Sequence[Claim]:
        return [Claim(key, "unix:/nowhere", 1, 0.0) for key in self.keys if key.startswith(prefix)]


class Time:
    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


async def test_a_newer_cluster_counts_once_it_has_been_there_for_a_while() -> None:
    board, clock, left = Board(), Time(), list[set[str]]()

    async def members() -> list[dict[str, Any]]:
        return [{"replica_id": "mine", "free_slots": 3}]

    config = load_config({"directory": {"takes_over": True}})
    seen = Clusters(board, config, "i", "2", members, "node", clock=clock)  # type: ignore[arg-type]
    seen.vacate = lambda replicas: left.append(set(replicas))
    await seen.members()
    await seen.begin("unix:/here")
    board.keys += ["cluster/rearview/1/a", "cluster/another/9/b"]
    clock.now += 2 * SETTLE_S
    await seen.look()
    assert not seen.is_superseded, "an older cluster, and one of another service"
    board.keys.append("cluster/rearview/3/c")
    await seen.look()
    clock.now += SETTLE_S - 1
    await seen.look()
    assert not seen.is_superseded
    board.keys.remove("cluster/rearview/3/c")
    await seen.look()
    board.keys.append("cluster/rearview/3/c")
    await seen.look()
    clock.now += SETTLE_S - 1
    assert not seen.is_superseded, "it was gone for a moment: it begins anew"
    assert left[-1] == set()
    assert not any("superseded" in word for word in await seen.members())
    clock.now += 1
    await seen.look()
    assert seen.is_superseded
    assert left[-1] == {"mine"}
    assert [(word["superseded"], word["free_slots"]) for word in await seen.members()] == [(True, 0)]
