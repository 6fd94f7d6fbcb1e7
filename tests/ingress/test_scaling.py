"""Sessions move together before a replica goes; what ingresses see of demand reaches replicas' reports."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import pytest
from rearview.contract.events import FrameAnswered
from rearview.contract.frame import Timing
from rearview.control.reports import UNKNOWN_S
from rearview.errors import Reason, Refused
from rearview.ingress.demand import Demand
from rearview.ingress.emptying import LEADER, LEAVING, PREFIX
from rearview.replica.admitted import Admitted
from rearview.replica.reporting import Reporting
from rearview.v1 import settings_pb2
from rearview.v1 import translation_service_pb2 as pb
from support.ingresses import crash, several
from support.raw_stream import RawStream, eventually, null_config
from support.service import InProcessService

pytestmark = [pytest.mark.integration, pytest.mark.usefixtures("measured")]

OLD, NEW = "span-0#0", "span-0#1"


@asynccontextmanager
async def two_half_empty_replicas(
    checkpoint: str = "null", *, spares: int = 0, replicas: int = 2, most: int = 4, streams: int = 4
) -> AsyncIterator[tuple[InProcessService, list[RawStream]]]:
    """Two ingresses, in turn with a session each; one takes a tenth of a replica."""
    config = null_config(
        slots=4, replicas=replicas, model={"checkpoint": checkpoint}, scaling={"hold_s": 0.0}
    )
    scales = {"min_replicas": 1, "max_replicas": most, "spares": spares}
    span = config.spans[0].model_copy(update=scales)
    async with several(2, config.model_copy(update={"spans": (span,)})) as service:
        opened = [RawStream(service.addresses[n % 2]) for n in range(streams)]
        for stream in opened:
            await stream.start(frame_rate=5.0, drop_policy=pb.DROP_POLICY_LOSSLESS)
            await stream.frame(0)
            await stream.read_answers(1)
        try:
            yield service, opened
        finally:
            for stream in opened:
                await stream.__aexit__()


async def look(service: InProcessService, *numbers: int) -> None:
    """Those ingresses look, and move what is theirs."""
    for number in numbers or range(len(service.ingresses)):
        await service.ingresses[number].refresh()
        await service.ingresses[number]._moving.scaling.look()
        await service.ingresses[number]._moving.scaling.empty()


def held_by(service: InProcessService) -> dict[str, int]:
    return {str(stage.describe()["replica_id"]): stage.num_sessions for stage in service.stages}


async def leaving(service: InProcessService) -> list[str]:
    claims = await service.directory.claims(PREFIX)
    return [each.key.removeprefix(PREFIX) for each in claims if each.owner == LEAVING]


@pytest.mark.parametrize("checkpoint", ["null", "chain"])
async def test_sessions_of_every_ingress_leave_the_newest_replica_and_miss_nothing(checkpoint: str) -> None:
    async with two_half_empty_replicas(checkpoint) as (service, streams):
        assert held_by(service) == {OLD: 2, NEW: 2}
        await look(service)
        assert await leaving(service) == [NEW]
        await look(service)
        await eventually(lambda: held_by(service) == {OLD: 4, NEW: 0})
        for stream in streams:
            await stream.frame(1)
            await stream.read_answers(1)
            assert [each.frame.frame_index for each in stream.answers] == [0, 1]
            assert stream.moves in ([], [pb.CONTINUITY_EXACT])
        assert sum(len(stream.moves) for stream in streams) == 2
        for name, value in (("wanted", 1.0), ("leaving", 1.0)):
            assert service.counted(f"rearview_replicas_{name}", span="span-0") == 2 * value
        assert service.counted("rearview_scaling_reason", span="span-0", why="minimum") == 2.0


async def test_a_replica_that_is_wanted_again_takes_sessions_again() -> None:
    async with two_half_empty_replicas(streams=2) as (service, streams):
        await look(service)
        await look(service)
        await eventually(lambda: held_by(service) == {OLD: 2, NEW: 0})
        more = [RawStream(service.addresses[0]) for _ in range(3)]
        for stream in more[:2]:
            await stream.start(frame_rate=5.0, drop_policy=pb.DROP_POLICY_LOSSLESS)
        assert held_by(service) == {OLD: 4, NEW: 0}, "it is taken last"
        await more[2].start(frame_rate=5.0, drop_policy=pb.DROP_POLICY_LOSSLESS)
        assert held_by(service) == {OLD: 4, NEW: 1}, "rather than to refuse"
        await look(service)
        assert await leaving(service) == []
        for stream in more:
            await stream.__aexit__()
        assert all(stream.moves in ([], [pb.CONTINUITY_EXACT]) for stream in streams)


async def test_sessions_that_fit_nowhere_else_stay_and_no_spare_is_taken_for_them() -> None:
    async with two_half_empty_replicas(replicas=3, spares=1) as (service, _):
        for ingress in service.ingresses:
            await ingress._spares.look()
        assert held_by(service) == {OLD: 2, NEW: 2, "span-0#2": 0}
        await look(service)
        await look(service)
        await eventually(lambda: held_by(service) == {OLD: 4, NEW: 0, "span-0#2": 0})
        assert service.ingresses[0]._spares.free == {"span-0#2"}


async def test_another_ingress_goes_on_when_the_leader_is_gone() -> None:
    async with two_half_empty_replicas() as (service, streams):
        await look(service, 0)
        (claim,) = await service.directory.claims(LEADER)
        assert claim.owner == "ingress#0"
        assert await leaving(service) == [NEW]
        await crash(service.servers.pop(0))
        await service.ingresses[0]._directory.drop_claim(claim)  # As when it expires.
        await look(service, 0)
        (claim,) = await service.directory.claims(LEADER)
        assert claim.owner == "ingress#1"
        assert await leaving(service) == [NEW]
        await streams[1].frame(1)
        await streams[1].read_answers(1)


async def test_a_service_empties_by_itself_what_is_to_go() -> None:
    async with two_half_empty_replicas() as (service, _):
        await eventually(lambda: held_by(service) == {OLD: 4, NEW: 0})


async def test_who_found_no_room_is_counted_where_there_was_none() -> None:
    async with two_half_empty_replicas(replicas=1, most=1) as (service, _):
        async with RawStream(service.addresses[0]) as stream:
            await stream.write(pb.TranslateRequest(open=pb.Open(settings=settings_pb2.Settings(prompt="a"))))
            assert (await stream.read_to_end()).reason is Reason.NO_CAPACITY
        told = [ingress.demand.told() for ingress in service.ingresses]
        assert [each["asked"] for each in told] == [3, 2]
        assert [each["refused"] for each in told] == [{"span-0": 1}, {}]
        assert told[0]["frame_age_s"] is not None
        for each in told:
            service.stages[0].reporting.hear(each)
        report = service.stages[0].reporting.report()
        assert (report.asked, report.refused, report.sessions, report.slots) == (5.0, 1.0, 4.0, 4.0)
        assert report.share == pytest.approx(0.4)
        assert report.start_s > 0


def heard(span: str, now: list[float]) -> Reporting:
    """Of a replica without sessions."""
    return Reporting(span, Admitted(span, None), (), lambda: now[0])


def test_frames_that_are_old_count_for_a_while_and_for_the_span_in_which_they_wait() -> None:
    now = [0.0]
    ingress, replica = Demand("i", lambda: now[0]), heard("denoise", now)
    assert ingress.told() == {
        "ingress": "i",
        "asked": 0,
        "refused": {},
        "frame_age_s": None,
        "binding": None,
    }
    for number in range(100):
        ingress(FrameAnswered("model", 0.5 if number < 10 else 0.1))
        ingress.passed((Timing("encode", 0.0, 0.2), Timing("denoise", 0.05, 0.01)))
    told = ingress.told()
    assert (told["frame_age_s"], told["binding"]) == (0.5, "denoise")
    replica.hear(told)
    assert replica.report().frame_age_s == 0.5
    other = heard("encode", now)
    other.hear(told)
    assert other.report().frame_age_s == UNKNOWN_S
    now[0] = 10.0
    assert ingress.told()["frame_age_s"] is None
    assert replica.report().frame_age_s == UNKNOWN_S


def test_a_quota_that_is_used_up_is_no_demand() -> None:
    ingress, replica = Demand("i", lambda: 0.0), heard("encode", [0.0])
    ingress.refused(Refused(Reason.TENANT_STREAMS_EXHAUSTED, "a"))
    ingress.refused(Refused(Reason.NO_CAPACITY, "b", metadata={"span": "encode"}))
    ingress.admitted()
    replica.hear(ingress.told())
    replica.hear({**ingress.told(), "ingress": "j"})
    assert (replica.report().asked, replica.report().refused) == (4, 2)
    for number in range(100):
        replica.hear({**ingress.told(), "ingress": f"k{number}"})
    assert replica.report().asked == 2 * 64, "of the last ones"
