"""Sessions are placed and admitted by the load that they declare, and refused from what is known."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import grpc
import pytest
from rearview.contract.cost import FrameCost
from rearview.contract.lease import Usage
from rearview.contract.settings import Guidance
from rearview.contract.size import Size
from rearview.errors import Reason
from rearview.ingress.service import Ingress
from rearview.v1 import error_reason_pb2 as errors_pb
from rearview.v1 import settings_pb2
from rearview.v1 import translation_service_pb2 as pb
from support.ingresses import several
from support.raw_stream import (
    OPERATORS,
    End,
    RawStream,
    assert_nothing_held,
    eventually,
    null_config,
    running,
)
from support.service import InProcessService

pytestmark = pytest.mark.integration

PIPELINE = ((OPERATORS[0],), OPERATORS[1:3], (OPERATORS[3],))
CROWD = 20
LIMITED: dict[str, Any] = {"placement": {"max_load": 0.9}}


async def refusal(address: str, **fields: Any) -> End:
    """How an open that is refused ends."""
    async with RawStream(address) as stream:
        await stream.write(
            pb.TranslateRequest(open=pb.Open(settings=settings_pb2.Settings(prompt="a"), **fields))
        )
        return await stream.read_to_end()


def assert_no_time(end: End, span: str) -> None:
    assert (end.code, end.reason) == (grpc.StatusCode.RESOURCE_EXHAUSTED, Reason.NO_CAPACITY)
    assert end.metadata == {"span": span, "limit": "load"}
    assert end.retry_after_s is not None


def held_by(service: InProcessService) -> list[int]:
    return [stage.num_sessions for stage in service.stages]


@pytest.mark.usefixtures("measured")
async def test_a_replica_takes_what_fits_its_time_and_refuses_what_does_not() -> None:
    async with running(**LIMITED) as service, RawStream(service.address) as first:
        await first.start(frame_rate=30.0)
        assert_no_time(await refusal(service.address, frame_rate=30.0), "span-0")
        assert_no_time(await refusal(service.address), "span-0")  # Who says nothing declares 30.
        async with RawStream(service.address) as slow, RawStream(service.address) as short:
            await slow.start(frame_rate=5.0)
            await short.start(frame_rate=2.0, max_steps=1)
        assert_no_time(await refusal(service.address, frame_rate=30.0), "span-0")
        await first.half_close()
        await first.read_to_end()
        async with RawStream(service.address) as second:
            await second.start(frame_rate=25.0)


@pytest.mark.usefixtures("measured")
async def test_what_a_frame_takes_of_a_replica_is_known_by_the_steps_that_it_may_have() -> None:
    async with (
        running(**LIMITED) as service,
        RawStream(service.address) as two,
        RawStream(service.address) as one,
    ):
        opened = [await two.start(frame_rate=2.0), await one.start(frame_rate=2.0, max_steps=1)]
        sessions = [service.sessions[each.session_id].session for each in opened]
        frame_s = service.ingresses[0].choosing.frame_s
        longer_s, shorter_s = map(frame_s, sessions)
        spec, settings = sessions[0].spec, sessions[0].settings
        for size, times in ((Size(128, 64), 2), (Size(64, 64), 1)):
            as_large: Any = SimpleNamespace(spec=spec, settings=settings, size=size)
            assert frame_s(as_large) == times * longer_s
        guided = replace(settings, guidance=Guidance.FULL, guidance_scale=2.0)
        under: Any = SimpleNamespace(spec=spec, settings=guided, size=sessions[0].size)
        assert frame_s(under) == pytest.approx(2 * longer_s)
        assert 1 / 60 < longer_s < 1 / 30  # Of 30 frames a second one session fits, and not two.
        assert 0 < shorter_s < longer_s


@pytest.mark.usefixtures("measured")
async def test_a_size_for_which_a_replica_has_no_time_is_refused_and_a_smaller_one_is_not() -> None:
    """Beside a session that takes a third of it; once that has ended, there is time."""
    async with running(**LIMITED) as service, RawStream(service.address) as stream:
        (stage,) = service.stages
        await stream.start(frame_rate=7.5, width=128, height=64)
        async with RawStream(service.address) as other:
            await other.start(frame_rate=18.0, width=64, height=64)
            refused = [await asked(stream, *size) for size in [(128, 128), (64, 64), (128, 64), (128, 128)]]
            await other.half_close()
            await other.read_to_end()
        await eventually(lambda: stage.num_sessions == 1)
        refused.append(await asked(stream, 128, 128))
        no_time, fine = errors_pb.ERROR_REASON_NO_CAPACITY, errors_pb.ERROR_REASON_UNSPECIFIED
        assert refused == [no_time, fine, fine, no_time, fine]


async def asked(stream: RawStream, width: int, height: int) -> int:
    """Why another size was refused, if it was."""
    await stream.control(1, width=width, height=height)
    while (answer := await stream.read()) is not None:
        if answer.HasField("control_applied"):
            return answer.control_applied.rejected_reason
    raise AssertionError("the stream has ended")


@pytest.mark.usefixtures("measured")
async def test_full_guidance_declares_two_rows_a_step_and_a_change_of_it_is_seen() -> None:
    guided = {"guidance": settings_pb2.GUIDANCE_FULL, "guidance_scale": 2.0}
    async with running(**LIMITED) as service, RawStream(service.address) as stream:
        (stage,) = service.stages
        await stream.start(frame_rate=15.0)
        assert stage.describe()["share"] == pytest.approx(0.3)
        await stream.control(1, **guided)
        await stream.frame(0)
        await eventually(lambda: stage.describe()["share"] == pytest.approx(0.6))
        asked = pb.Open(settings=settings_pb2.Settings(prompt="a", **guided), frame_rate=10.0)
        async with RawStream(service.address) as other:
            await other.write(pb.TranslateRequest(open=asked))
            assert_no_time(await other.read_to_end(), "span-0")
        async with RawStream(service.address) as other:
            await other.start(frame_rate=10.0)


@pytest.mark.usefixtures("measured")
async def test_guidance_that_was_switched_on_counts_from_the_first_moment_where_a_session_moves_to() -> None:
    async with running(replicas=2) as service, RawStream(service.address) as stream:
        await stream.start(frame_rate=15.0)
        await stream.control(1, guidance=settings_pb2.GUIDANCE_FULL, guidance_scale=2.0)
        await stream.frame(0)
        await stream.read_answers(1)
        old, new = sorted(service.stages, key=lambda stage: stage.num_sessions, reverse=True)
        await old.drain(20.0)
        assert (old.num_sessions, new.num_sessions) == (0, 1)
        assert new.describe()["share"] == pytest.approx(0.6)


@pytest.mark.usefixtures("measured")
async def test_without_a_limit_slots_alone_decide_however_slow_the_machine_is() -> None:
    async with running(slots=3) as service:
        streams = [RawStream(service.address) for _ in range(3)]
        for stream in streams:
            await stream.start(frame_rate=240.0)
        end = await refusal(service.address, frame_rate=1.0)
        assert end.metadata == {"span": "span-0", "limit": "slots"}
        for stream in streams:
            await stream.__aexit__()


@pytest.mark.usefixtures("measured")
async def test_sessions_go_where_the_least_load_is_whatever_slots_say() -> None:
    async with running(replicas=2) as service:
        streams = [RawStream(service.address) for _ in range(4)]
        for stream, frame_rate in zip(streams, (30.0, 5.0, 5.0, 5.0), strict=True):
            await stream.start(frame_rate=frame_rate)
        assert held_by(service) == [1, 3]
        for stream in streams:
            await stream.__aexit__()


@pytest.mark.usefixtures("measured")
async def test_a_lane_needs_time_on_every_span_and_no_part_of_it_holds_a_slot() -> None:
    async with running(spans=PIPELINE, **LIMITED) as service, RawStream(service.address) as stream:
        await stream.start(frame_rate=30.0)
        assert_no_time(await refusal(service.address), "span-1")
        assert held_by(service) == [1, 1, 1]
        await assert_nothing_held(service, sessions=1)


def blind(ingress: Ingress, monkeypatch: pytest.MonkeyPatch) -> None:
    """Let an ingress know of no lease, as if all had been taken this very moment."""

    async def nothing() -> Mapping[str, Usage]:
        return {}

    monkeypatch.setattr(ingress._leases, "usage_by_replica", nothing)


@pytest.mark.usefixtures("measured")
async def test_the_replica_has_the_last_word_and_its_refusal_leads_to_another(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    async with several(2, null_config(replicas=2, **LIMITED)) as service:
        blind(service.ingresses[1], monkeypatch)
        one, other, third = (RawStream(address) for address in (*service.addresses, service.addresses[1]))
        await one.start(frame_rate=30.0)
        assert [stage.num_sessions for stage in service.stages] == [1, 0]
        await other.start(frame_rate=30.0)
        assert [stage.num_sessions for stage in service.stages] == [1, 1]
        assert_no_time(await refusal(service.addresses[1]), "span-0")
        await third.start(frame_rate=2.0)
        for stream in (one, other, third):
            await stream.__aexit__()


@pytest.mark.usefixtures("measured")
async def test_a_session_that_lost_its_replica_goes_on_where_there_is_a_slot_but_no_time() -> None:
    async with running(replicas=2, **LIMITED) as service:
        streams = [RawStream(service.address) for _ in range(2)]
        for stream in streams:
            await stream.start(frame_rate=30.0, drop_policy=pb.DROP_POLICY_LOSSLESS)
        assert held_by(service) == [1, 1]
        await service.stages.pop(0).stop()
        for stream in streams:
            await stream.frame(0)
            await stream.read_answers(1)
        assert held_by(service) == [2]
        assert service.stages[0].describe()["share"] > 0.9
        assert_no_time(await refusal(service.address, frame_rate=1.0), "span-0")
        for stream in streams:
            await stream.__aexit__()


async def test_a_crowd_that_cannot_be_served_asks_no_replica_and_the_directory_a_few_times(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    async with running(slots=1) as service, RawStream(service.address) as live:
        await live.start()
        asked = []
        usage, refresh = service.directory.usage_by_replica, service.ingresses[0]._placing._refresh

        async def counted_usage() -> Mapping[str, Usage]:
            asked.append("directory")
            await asyncio.sleep(0.05)  # As if it were far away: the crowd comes meanwhile.
            return await usage()

        async def counted_refresh(timeout_s: float) -> None:
            asked.append("replicas")
            await refresh(timeout_s)

        for ingress in service.ingresses:
            monkeypatch.setattr(ingress._leases._usage, "_ask", counted_usage)
            monkeypatch.setattr(ingress._placing, "_refresh", counted_refresh)
        ends = await asyncio.gather(*(refusal(service.address) for _ in range(CROWD)))
        assert {end.reason for end in ends} == {Reason.NO_CAPACITY}
        assert all(end.retry_after_s is not None for end in ends)
        assert set(asked) == {"directory"}
        assert len(asked) < CROWD / 2


async def test_a_replica_tells_what_a_frame_was_measured_to_cost_by_its_steps() -> None:
    async with running(spans=PIPELINE, model={"checkpoint": "chain:20+0"}) as service:
        costs = [FrameCost(**stage.describe()["cost"]) for stage in service.stages]
        assert [cost.steps for cost in costs] == [(), (0, 1), ()]
        assert costs[1].once_s == costs[0].step_s == costs[2].step_s == 0
        assert costs[1].step_s >= 0.010  # Two rows share a forward of 20 ms.
        assert costs[0].once_s < costs[1].step_s
