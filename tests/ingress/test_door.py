"""What every call passes: bytes that are no message, sizes, calls and connections of an address."""

from __future__ import annotations

import asyncio
import logging
from collections import Counter
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import grpc
import pytest
from google.protobuf.message import Message
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection_pb2
from rearview.client.call import Call
from rearview.errors import STATUS_OF_REASON, Reason
from rearview.ingress.door import OVERSIZE
from rearview.v1 import model_service_pb2 as models_pb
from rearview.v1 import session_service_pb2 as sessions_pb
from rearview.v1 import settings_pb2
from rearview.v1 import translation_service_pb2 as pb
from support.fuzz import mutants, tries
from support.planted import SlowPrepare
from support.raw_stream import RawStream, assert_nothing_held, end_of, eventually, running
from support.service import InProcessService
from support.tokens import Registry

pytestmark = pytest.mark.integration

DEADLINE_S = 20.0
REQUESTS: dict[str, list[Message]] = {
    "/rearview.v1.TranslationService/Translate": [
        pb.TranslateRequest(
            open=pb.Open(settings=settings_pb2.Settings(prompt="a", steps=2, seed=7), width=64, height=64)
        ),
        pb.TranslateRequest(resume=pb.Resume(session_id="0" * 32, resume_token="x" * 32, received_answers=3)),
        pb.TranslateRequest(frame=pb.Frame(frame_index=1, image=b"frame" * 20)),
        pb.TranslateRequest(
            control=pb.Control(control_id=1, settings=settings_pb2.Settings(prompt="b", strength=0.5))
        ),
        pb.TranslateRequest(credit=pb.Credit(answer_credit=4, received_answers=2)),
    ],
    "/rearview.v1.SessionService/GetSession": [sessions_pb.GetSessionRequest(session_id="0" * 32)],
    "/rearview.v1.SessionService/ListSessions": [
        sessions_pb.ListSessionsRequest(page_size=3, page_token="0x1p3/x")
    ],
    "/rearview.v1.SessionService/CloseSession": [sessions_pb.CloseSessionRequest(session_id="0" * 32)],
    "/rearview.v1.ModelService/DescribeModel": [models_pb.DescribeModelRequest()],
    "/grpc.health.v1.Health/Check": [health_pb2.HealthCheckRequest(service="rearview.v1.SessionService")],
    "/grpc.health.v1.Health/Watch": [health_pb2.HealthCheckRequest(service="rearview.v1.SessionService")],
    "/grpc.reflection.v1alpha.ServerReflection/ServerReflectionInfo": [
        reflection_pb2.ServerReflectionRequest(host="a", list_services="x"),
        reflection_pb2.ServerReflectionRequest(file_containing_symbol="rearview.v1.TranslateRequest"),
    ],
}
STREAMS = {"Translate", "ServerReflectionInfo"}
QUICK = {"reflection": True, "idle_timeout_s": 5.0, "open_timeout_s": 0.5, "resume_grace_s": 0.1}
RIGHT = {"OK", *STATUS_OF_REASON.values()} - {"INTERNAL"}


async def send(channel: grpc.aio.Channel, method: str, content: bytes) -> grpc.StatusCode:
    """How a call with these bytes as its only request ends; OK also if it was answered and goes on."""
    if method.rpartition("/")[2] in STREAMS:
        stream = Call(channel.stream_stream(method)())
        await stream.write(content)
        await stream.half_close()
        async with asyncio.timeout(DEADLINE_S):
            return (await end_of(stream)).code
    call = channel.unary_stream(method)(content)
    try:
        async with asyncio.timeout(DEADLINE_S):
            answer = await call.read()
    except grpc.aio.AioRpcError as error:
        return error.code()
    call.cancel()
    return grpc.StatusCode.OK if answer is not grpc.aio.EOF else await call.code()


async def status_of(channel: grpc.aio.Channel, method: str, content: bytes) -> grpc.StatusCode:
    try:
        return await send(channel, method, content)
    except grpc.aio.AioRpcError as error:
        return error.code()


async def test_fault_14_bytes_that_are_no_message_have_a_reason_and_leave_no_fault_in_the_log(
    caplog: pytest.LogCaptureFixture,
) -> None:
    seen: Counter[grpc.StatusCode] = Counter()
    caplog.set_level(logging.WARNING)
    async with (
        running(ingress=QUICK, slots=64) as service,
        grpc.aio.insecure_channel(service.address) as channel,
    ):
        for number, (method, requests) in enumerate(REQUESTS.items()):
            originals = [request.SerializeToString() for request in requests]
            for content in mutants(originals, tries(60 if len(requests) > 1 else 15), seed=number):
                code = await status_of(channel, method, content)
                assert code.name in RIGHT, (method, content, code)
                seen[code] += 1
        await assert_nothing_held(service)
    assert seen[grpc.StatusCode.INVALID_ARGUMENT] > sum(seen.values()) / 3
    faults = [record for record in caplog.records if record.levelno >= logging.ERROR]
    assert [each.getMessage() for each in faults if each.name.startswith(("rearview", "grpc"))] == []


@pytest.mark.parametrize("method", REQUESTS)
async def test_bytes_of_no_message_are_an_invalid_argument_of_every_method(method: str) -> None:
    async with running(ingress=QUICK) as service, grpc.aio.insecure_channel(service.address) as channel:
        assert await status_of(channel, method, b"\xff\xff\xff\xff") is grpc.StatusCode.INVALID_ARGUMENT


async def test_bytes_of_no_message_end_an_open_stream_and_its_session_with_a_reason() -> None:
    async with running() as service, RawStream(service.address) as stream:
        raw = Call(stream.channel.stream_stream("/rearview.v1.TranslationService/Translate")())
        opening = pb.TranslateRequest(open=pb.Open(settings=settings_pb2.Settings(prompt="a")))
        await raw.write(opening.SerializeToString())
        assert isinstance(await raw.read(), bytes)
        await raw.write(b"\x0a\xff")
        end = await end_of(raw)
        assert (end.code, end.reason) == (grpc.StatusCode.INVALID_ARGUMENT, Reason.MESSAGE_INVALID)
        await assert_nothing_held(service)


@asynccontextmanager
async def small() -> AsyncIterator[tuple[InProcessService, int]]:
    """A service of small messages, and their limit."""
    async with running(limits={"max_image_bytes": 4096, "max_pixels": 64 * 64}) as service:
        yield service, service.config.max_message_bytes


@pytest.mark.parametrize("times", [1.01, 2.5, OVERSIZE - 0.1])
async def test_fault_21_a_message_over_the_limit_is_answered_with_reason_and_limit(times: float) -> None:
    async with small() as (service, limit), RawStream(service.address) as stream:
        await stream.start()
        await stream.frame(1, bytes(int(times * limit)))
        end = await stream.read_to_end()
        assert (end.code, end.reason) == (grpc.StatusCode.RESOURCE_EXHAUSTED, Reason.MESSAGE_TOO_LARGE)
        assert end.metadata["limit_bytes"] == str(limit)
        assert str(limit) in end.message
        await assert_nothing_held(service)


async def test_a_unary_request_over_the_limit_is_answered_with_reason_and_limit() -> None:
    async with small() as (service, limit), grpc.aio.insecure_channel(service.address) as channel:
        call = Call(channel.stream_stream("/rearview.v1.SessionService/GetSession")())
        request = sessions_pb.GetSessionRequest(session_id="x" * limit)
        await call.write(request.SerializeToString())
        await call.half_close()
        end = await end_of(call)
        assert (end.code, end.reason) == (grpc.StatusCode.RESOURCE_EXHAUSTED, Reason.MESSAGE_TOO_LARGE)
        assert end.metadata["limit_bytes"] == str(limit)


async def test_a_message_far_over_the_limit_is_not_taken_in_at_all() -> None:
    async with small() as (service, limit), RawStream(service.address) as stream:
        await stream.start()
        await stream.frame(1, bytes(OVERSIZE * limit + 1))
        end = await stream.read_to_end()
        assert end.code is grpc.StatusCode.RESOURCE_EXHAUSTED
        assert str(OVERSIZE * limit) in end.message


@pytest.mark.parametrize("name", ["GetSession", "ListSessions", "CloseSession"])
async def test_a_call_that_is_not_let_in_is_refused_before_its_request_is_read(
    name: str, tmp_path: Path
) -> None:
    async with (
        running(**Registry(tmp_path).sections) as service,
        grpc.aio.insecure_channel(service.address) as channel,
    ):
        call = channel.stream_unary(f"/rearview.v1.SessionService/{name}")()  # Which sends nothing.
        code = await asyncio.wait_for(call.code(), DEADLINE_S)
        assert code is grpc.StatusCode.UNAUTHENTICATED


async def test_a_unary_call_without_a_request_is_told_so() -> None:
    async with running() as service, grpc.aio.insecure_channel(service.address) as channel:
        call = channel.stream_unary("/rearview.v1.SessionService/GetSession")()
        await call.done_writing()
        assert await call.code() is grpc.StatusCode.INVALID_ARGUMENT


async def test_a_message_of_the_limit_is_taken() -> None:
    async with small() as (service, limit), RawStream(service.address) as stream:
        await stream.start()
        message = pb.TranslateRequest(frame=pb.Frame(image=b""))
        message.frame.image = bytes(limit - message.ByteSize() - 6)
        assert limit - 6 <= message.ByteSize() <= limit
        await stream.write(message)
        (answer,) = await stream.read_answers(1)
        assert answer.HasField("dropped") or answer.HasField("frame")


async def test_fault_16_health_watches_of_an_address_are_bounded_and_come_back() -> None:
    most = 5
    async with (
        running(access={"peers": {"max_open_calls": most}}) as service,
        RawStream(service.address) as stream,
    ):
        health = health_pb2_grpc.HealthStub(stream.channel)
        watches = [health.Watch(health_pb2.HealthCheckRequest()) for _ in range(most)]
        for watch in watches:
            await watch.read()
        for call in (
            health.Watch(health_pb2.HealthCheckRequest()).read(),
            health.Check(health_pb2.HealthCheckRequest()),
        ):
            with pytest.raises(grpc.aio.AioRpcError) as refused:
                await call
            assert refused.value.code() is grpc.StatusCode.RESOURCE_EXHAUSTED
            assert b"CALLS_EXHAUSTED" in dict(refused.value.trailing_metadata())["grpc-status-details-bin"]
        await stream.start()  # Who has a tenant is bounded by that.
        watches.pop().cancel()

        async def answers() -> bool:
            try:
                await health.Check(health_pb2.HealthCheckRequest())
            except grpc.aio.AioRpcError:
                return False
            return True

        await eventually(answers)


async def test_fault_16_calls_of_a_connection_are_bounded() -> None:
    peers = {"max_calls_per_connection": 3, "max_open_calls": 100}
    async with (
        running(access={"peers": peers}) as service,
        grpc.aio.insecure_channel(service.address) as channel,
    ):
        health = health_pb2_grpc.HealthStub(channel)
        watches = [health.Watch(health_pb2.HealthCheckRequest()) for _ in range(3)]
        for watch in watches:
            await watch.read()
        waiting = health.Watch(health_pb2.HealthCheckRequest())
        reading = asyncio.ensure_future(waiting.read())
        async with grpc.aio.insecure_channel(
            service.address, [("grpc.use_local_subchannel_pool", 1)]
        ) as other:
            await health_pb2_grpc.HealthStub(other).Check(health_pb2.HealthCheckRequest(), timeout=10)
        assert not reading.done()
        watches[0].cancel()
        assert (await asyncio.wait_for(reading, DEADLINE_S)).status == health_pb2.HealthCheckResponse.SERVING


PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + bytes([0, 0, 0, 4, 0, 0, 0, 0, 0])


@pytest.mark.parametrize("greeting", [b"", b"PRI", b"GET / HTTP/1.1\r\nHost: x\r\n", PREFACE])
async def test_fault_16_a_connection_that_says_nothing_is_closed(greeting: bytes) -> None:
    peers = {"handshake_timeout_s": 0.3, "idle_connection_s": 0.3}
    async with running(access={"peers": peers}) as service:
        host, port = service.address.split(":")
        reader, writer = await asyncio.open_connection(host, int(port))
        writer.write(greeting)
        with pytest.raises((asyncio.IncompleteReadError, ConnectionError)):
            await asyncio.wait_for(reader.readexactly(1 << 20), DEADLINE_S)
        writer.close()


async def test_fault_16_connections_are_bounded() -> None:
    async with running(access={"peers": {"max_connections": 4}}) as service:
        host, port = service.address.split(":")
        held = [await asyncio.open_connection(host, int(port)) for _ in range(10)]
        closed = 0
        for reader, _ in held:
            try:
                closed += not await asyncio.wait_for(reader.read(1), 0.3)
            except ConnectionError:
                closed += 1
            except TimeoutError:
                pass
        assert closed >= 6
        for _, writer in held:
            writer.close()


async def test_fault_22_an_open_that_takes_longer_than_silence_may_is_no_silence(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("rearview.replica.build.load_model", lambda *_: SlowPrepare(0.8))
    async with running(ingress={"idle_timeout_s": 0.4}) as service, RawStream(service.address) as stream:
        await stream.start()
        await asyncio.sleep(0.1)
        await stream.frame(1)
        await stream.read_answers(1)
        await stream.half_close()
        assert (await stream.read_to_end()).code is grpc.StatusCode.OK


async def test_ends_of_calls_are_counted_by_reason() -> None:
    async with running() as service, RawStream(service.address) as stream:
        with pytest.raises(grpc.aio.AioRpcError):
            await stream.sessions.GetSession(sessions_pb.GetSessionRequest(session_id="x"))
        assert service.counted("rearview_calls_ended_total", reason="session_unknown") == 1
