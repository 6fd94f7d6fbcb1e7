"""Limits: of a tenant, of the slots, and of what is kept for a client that does not read."""

from __future__ import annotations

import asyncio
import hashlib
import time
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path

import grpc
import pytest
import yaml
from rearview.engine.networks.model import Model
from rearview.errors import STATUS_OF_REASON, DropReason, Reason
from rearview.ingress.book import RETAINED_ANSWERS
from rearview.ingress.stream import TranslateStream
from rearview.v1 import session_service_pb2 as sessions_pb
from rearview.v1 import settings_pb2
from rearview.v1 import translation_service_pb2 as pb
from support.planted import Slow
from support.raw_stream import (
    OPERATORS,
    End,
    RawStream,
    assert_nothing_held,
    eventually,
    index,
    open_streams,
    running,
)

pytestmark = pytest.mark.integration

BIG, LARGEST = bytes(1 << 19), bytes(1 << 20)
PIPELINE = ((OPERATORS[0],), OPERATORS[1:])


@pytest.fixture
def tenants(tmp_path: Path) -> Path:
    """alpha: two streams, 5 frames/s, 64 by 64 pixels; beta: as it comes. Tokens: their names."""
    limits = {"alpha": {"max_streams": 2, "max_frames_per_s": 5, "max_pixels": 64 * 64}, "beta": {}}
    content = [
        {"name": name, "token_sha256": hashlib.sha256(name.encode()).hexdigest(), **own}
        for name, own in limits.items()
    ]
    path = tmp_path / "tenants.yaml"
    path.write_text(yaml.safe_dump(content))
    return path


async def opening(stream: RawStream, **fields: object) -> End:
    """How an open that is refused ends."""
    request = pb.Open(settings=settings_pb2.Settings(prompt="a"), **fields)  # type: ignore[arg-type]
    await stream.write(pb.TranslateRequest(open=request))
    return await stream.read_to_end()


def assert_refused(end: End, reason: Reason, *, retry: bool) -> None:
    assert (end.code.name, end.reason) == (STATUS_OF_REASON[reason], reason), end
    assert (end.retry_after_s is not None) == retry
    assert not retry or 0 < end.retry_after_s <= 10  # type: ignore[operator]


@pytest.mark.parametrize("token", [None, "", "wrong", "alpha ", "alph\u00e4"])
async def test_a_call_without_a_tenants_token_is_refused(tenants: Path, token: str | None) -> None:
    async with running(tenants_file=str(tenants)) as service:
        stream = RawStream(service.address, token if token is None or token.isascii() else "x" * 5000)
        async with stream:
            assert_refused(await opening(stream), Reason.TOKEN_INVALID, retry=False)
            with pytest.raises(grpc.aio.AioRpcError) as refused:
                await stream.sessions.ListSessions(
                    sessions_pb.ListSessionsRequest(), metadata=stream.metadata
                )
            assert refused.value.code() is grpc.StatusCode.UNAUTHENTICATED


@pytest.mark.two_ingresses
async def test_a_tenant_has_its_number_of_streams_and_no_more(tenants: Path) -> None:
    async with running(tenants_file=str(tenants)) as service, RawStream(service.address, "alpha") as first:
        await first.start(frame_rate=2.0)
        async with RawStream(service.address, "alpha") as second:
            await second.start(frame_rate=2.0)
            async with RawStream(service.address, "alpha") as third:
                assert_refused(
                    await opening(third, frame_rate=1.0), Reason.TENANT_STREAMS_EXHAUSTED, retry=True
                )
            async with RawStream(service.address, "beta") as other:
                await other.start()
            await second.half_close()
            assert (await second.read_to_end()).code is grpc.StatusCode.OK
        async with RawStream(service.address, "alpha") as again:
            await again.start(frame_rate=2.0)


async def test_frames_beyond_a_tenants_rate_are_dropped(tenants: Path) -> None:
    async with (
        running(tenants_file=str(tenants)) as service,
        RawStream(service.address, "alpha") as stream,
        RawStream(service.address, "beta") as other,
    ):
        await stream.start(drop_policy=pb.DROP_POLICY_LOSSLESS, frame_rate=5.0)
        await other.start(drop_policy=pb.DROP_POLICY_LOSSLESS)
        for number in range(8):
            await stream.frame(number)
            await other.frame(number)
        await stream.read_answers(8)
        await other.read_answers(8)
        assert stream.drops[-2:] == [DropReason.RATE_LIMITED] * 2
        assert stream.answers[4].HasField("frame")
        assert not other.drops


async def test_of_frames_beyond_a_tenants_rate_no_more_are_read_than_it_may_send(tenants: Path) -> None:
    async with running(tenants_file=str(tenants)) as service, RawStream(service.address, "alpha") as stream:
        opened = await stream.start(frame_rate=5.0)
        session, began_s = service.sessions[opened.session_id].session, time.monotonic()

        async def flood() -> None:
            for number in range(60):
                await stream.frame(number, BIG)

        flooding = asyncio.create_task(flood())
        while (lasted_s := time.monotonic() - began_s) < 1.5:
            await asyncio.sleep(0.01)
            assert session.received <= 5 + 2 * 5 * (lasted_s + 0.5), f"{lasted_s:.2f} s"
        assert session.received >= 10  # It is slow, not stopped.
        assert not flooding.done()  # The connection holds its sender back.
        async with RawStream(service.address, "beta") as other:
            await other.start()
            await other.frame(1)
            await other.read_answers(1)
        flooding.cancel()


async def test_large_frames_that_a_tenant_may_send_at_once_are_read_one_by_one(tenants: Path) -> None:
    async with running(tenants_file=str(tenants)) as service, RawStream(service.address, "alpha") as stream:
        opened = await stream.start(drop_policy=pb.DROP_POLICY_LOSSLESS, frame_rate=5.0)
        session, began_s = service.sessions[opened.session_id].session, time.monotonic()

        async def burst() -> None:
            for number in range(5):
                await stream.frame(number, LARGEST)

        bursting = asyncio.create_task(burst())
        while session.received < 5:
            assert session.received <= 2 + 5 * (time.monotonic() - began_s)
            await asyncio.sleep(0.005)
        assert time.monotonic() - began_s >= 0.5  # Two at once, and three at the rate.
        await bursting
        await stream.read_answers(5)
        assert not stream.drops


async def test_controls_beyond_a_tenants_rate_wait_and_none_is_lost(tenants: Path) -> None:
    async with running(tenants_file=str(tenants)) as service, RawStream(service.address, "alpha") as stream:
        await stream.start(frame_rate=5.0)
        began_s = time.monotonic()
        for number in range(20):
            await stream.control(number, prompt=f"{number}")
        await stream.frame(1)
        await stream.read_answers(1)
        assert time.monotonic() - began_s >= 0.9
        applied = [r.control_applied.control_id for r in stream.received if r.HasField("control_applied")]
        assert applied == list(range(20))


async def test_a_tenant_has_its_pixels_and_no_more(tenants: Path) -> None:
    async with running(tenants_file=str(tenants)) as service:
        async with RawStream(service.address, "alpha") as stream:
            refused = await opening(stream, width=72, height=64)
            assert_refused(refused, Reason.RESOLUTION_UNSUPPORTED, retry=False)
        async with RawStream(service.address, "beta") as stream:
            await stream.start(width=72, height=64)


@pytest.mark.two_ingresses
async def test_a_tenant_cannot_reach_anothers_session(tenants: Path) -> None:
    async with (
        running(tenants_file=str(tenants)) as service,
        RawStream(service.address, "alpha") as stream,
        RawStream(service.address, "beta") as thief,
    ):
        opened = await stream.start(frame_rate=5.0)
        resume = pb.Resume(session_id=opened.session_id, resume_token=opened.resume_token)
        await thief.write(pb.TranslateRequest(resume=resume))
        assert_refused(await thief.read_to_end(), Reason.SESSION_UNKNOWN, retry=False)
        for request in (
            thief.sessions.GetSession(
                sessions_pb.GetSessionRequest(session_id=opened.session_id), metadata=thief.metadata
            ),
            thief.sessions.CloseSession(
                sessions_pb.CloseSessionRequest(session_id=opened.session_id), metadata=thief.metadata
            ),
        ):
            with pytest.raises(grpc.aio.AioRpcError) as refused:
                await request
            assert refused.value.code() is grpc.StatusCode.NOT_FOUND
        listed = await thief.sessions.ListSessions(sessions_pb.ListSessionsRequest(), metadata=thief.metadata)
        assert not listed.sessions
        await stream.frame(1)
        await stream.read_answers(1)


@pytest.mark.parametrize("spans", [(OPERATORS,), PIPELINE], ids=["fused", "pipeline"])
async def test_with_all_slots_taken_an_open_is_refused_at_once(spans: tuple[tuple[str, ...], ...]) -> None:
    async with running(spans=spans, slots=2) as service:
        async with RawStream(service.address) as first, RawStream(service.address) as second:
            await first.start()
            await second.start()
            took_s = []
            for _ in range(4):
                async with RawStream(service.address) as third:
                    await third.call.wait_for_connection()
                    started_s = time.monotonic()
                    assert_refused(await opening(third), Reason.NO_CAPACITY, retry=True)
                    took_s.append(time.monotonic() - started_s)
            assert min(took_s) < 0.1, took_s
            for stream in (first, second):
                await stream.frame(1)
                await stream.read_answers(1)
                await stream.half_close()
                assert (await stream.read_to_end()).code is grpc.StatusCode.OK
        await assert_nothing_held(service)


async def test_a_slot_that_was_freed_can_be_taken_at_once() -> None:
    async with running(slots=1) as service:
        for _ in range(10):
            async with RawStream(service.address) as stream:
                await stream.start()
                await stream.half_close()
                assert (await stream.read_to_end()).code is grpc.StatusCode.OK


@pytest.mark.two_ingresses
async def test_a_burst_of_opens_fills_every_slot_and_no_more() -> None:
    async with running(spans=PIPELINE, slots=3, replicas=2) as service:
        streams = [RawStream(service.address) for _ in range(10)]

        async def try_open(stream: RawStream) -> bool:
            await stream.write(pb.TranslateRequest(open=pb.Open(settings=settings_pb2.Settings(prompt="a"))))
            return await stream.read() is not None

        opened = await asyncio.gather(*map(try_open, streams))
        assert sum(opened) == 6
        await assert_nothing_held(service, sessions=6)
        for stream in streams:
            await stream.__aexit__()


@pytest.mark.two_ingresses
@pytest.mark.parametrize("spans", [(OPERATORS,), PIPELINE], ids=["fused", "pipeline"])
async def test_a_session_that_nobody_feeds_makes_room_for_one_that_somebody_will(
    spans: tuple[tuple[str, ...], ...],
) -> None:
    async with running(spans=spans, slots=2) as service, RawStream(service.address) as live:
        await live.start()
        for _ in range(4):
            async with RawStream(service.address) as lost:
                opened = await lost.start()
                lost.call.cancel()
                await eventually(
                    lambda opened=opened: service.sessions[opened.session_id].stream is None  # type: ignore[misc]
                )
        async with RawStream(service.address) as new:
            await new.start()
            assert opened.session_id not in service.sessions
            async with RawStream(service.address) as late:
                resume = pb.Resume(session_id=opened.session_id, resume_token=opened.resume_token)
                await late.write(pb.TranslateRequest(resume=resume))
                assert_refused(await late.read_to_end(), Reason.SESSION_UNKNOWN, retry=False)
            for stream in (live, new):
                await stream.frame(1)
                await stream.read_answers(1)
        assert not live.drops


async def test_a_session_that_nobody_feeds_stays_while_there_is_room() -> None:
    async with running(slots=3) as service:
        async with RawStream(service.address) as lost:
            opened = await lost.start()
        for _ in range(5):
            async with RawStream(service.address) as stream:
                await stream.start()
                await stream.half_close()
                await stream.read_to_end()
        async with RawStream(service.address) as back:
            await back.resume(opened, 0)


async def test_answers_wait_for_the_clients_credit() -> None:
    async with running() as service, RawStream(service.address) as stream:
        opened = await stream.start(drop_policy=pb.DROP_POLICY_LOSSLESS, answer_credit=3)
        record = service.sessions[opened.session_id]
        for number in range(8):
            await stream.frame(number)
        await stream.read_answers(3)
        await eventually(lambda: record.session.book.released == 8)
        await stream.control(1, seed=1)  # Its answer needs no credit, and shows that nothing else comes.
        response = await stream.read()
        assert response is not None
        assert response.control_applied.control_id == 1
        await stream.write(pb.TranslateRequest(credit=pb.Credit(answer_credit=5, received_answers=3)))
        assert [index(a) for a in await stream.read_answers(2)] == [3, 4]
        await stream.control(2, seed=2)
        response = await stream.read()
        assert response is not None
        assert response.control_applied.control_id == 2
        await stream.half_close()
        assert (await stream.read_to_end()).code is grpc.StatusCode.OK
        assert stream.indices == list(range(8))


async def fill(service_record: object, stream: RawStream) -> int:
    """Send big frames until credit stops, or the connection."""
    session = service_record.session  # type: ignore[attr-defined]
    for number in range(1000):
        try:
            async with asyncio.timeout(0.5):
                while session.frame_credit <= number:  # noqa: ASYNC110
                    await asyncio.sleep(0.002)
        except TimeoutError:
            return number
        await stream.frame(number, BIG)
    raise AssertionError("nothing stopped a sender that does not read")


async def test_a_client_that_does_not_read_is_bounded_and_disturbs_nobody() -> None:
    async with running() as service, RawStream(service.address) as other, RawStream(service.address) as slow:
        opened = await slow.start(drop_policy=pb.DROP_POLICY_LOSSLESS)
        await other.start(drop_policy=pb.DROP_POLICY_LOSSLESS)
        record = service.sessions[opened.session_id]
        filling = asyncio.create_task(fill(record, slow))
        number = 0
        while not filling.done():
            await other.frame(number)
            await other.read_answers(1)
            assert len(record.session.book._released) <= 2 * RETAINED_ANSWERS
            assert len(record.session.book._open) <= 8
            number += 1
        sent = await filling
        assert sent <= 64 + 2 * RETAINED_ANSWERS
        assert len(record.session.book._released) <= 2 * RETAINED_ANSWERS
        await slow.read_answers(sent)  # It was slow, not wrong: nothing is lost.
        assert slow.indices == list(range(sent))
        assert not slow.drops
        assert not other.drops


async def test_a_client_that_does_not_read_is_idle_at_the_limit() -> None:
    async with running(ingress={"idle_timeout_s": 1.0}) as service, RawStream(service.address) as slow:
        opened = await slow.start(drop_policy=pb.DROP_POLICY_LOSSLESS)
        await fill(service.sessions[opened.session_id], slow)
        await assert_nothing_held(service)
        await eventually(lambda: open_streams(service) == 0)
        end = await slow.read_to_end()
        assert (end.code, end.reason) == (grpc.StatusCode.DEADLINE_EXCEEDED, Reason.IDLE)


async def test_a_client_that_does_not_read_its_flush_is_idle_at_the_limit() -> None:
    async with running(ingress={"idle_timeout_s": 1.0}) as service, RawStream(service.address) as slow:
        opened = await slow.start(drop_policy=pb.DROP_POLICY_LOSSLESS)
        await fill(service.sessions[opened.session_id], slow)
        await slow.half_close()
        await assert_nothing_held(service)


async def test_a_flood_of_controls_that_nobody_reads_is_bounded(plant_model: Callable[[Model], None]) -> None:
    prepared = []

    class Counts(Slow):
        def prepare(self, settings: object) -> None:
            prepared.append(settings)

    plant_model(Counts(0.0))
    count = 4000
    async with running() as service, RawStream(service.address) as stream:
        opened = await stream.start()
        feeder = service.sessions[opened.session_id].stream
        assert isinstance(feeder, TranslateStream)
        before, longest = len(prepared), 0

        async def flood() -> None:
            for number in range(count):
                await stream.control(number, prompt=f"{number} " * 400)

        flooding = asyncio.create_task(flood())
        for _ in range(50):
            longest = max(longest, len(feeder._outgoing))
            await asyncio.sleep(0.01)
        assert longest <= 16
        while sum(r.HasField("control_applied") for r in stream.received) < count:
            assert await stream.read() is not None
        await flooding
        ids = [r.control_applied.control_id for r in stream.received if r.HasField("control_applied")]
        assert all(a < b for a, b in pairwise(ids))
        await stream.frame(1)
        await stream.read_answers(1)
        assert len(prepared) - before == 1  # The engine heard of the last settings alone.
