"""The cleanup matrix, seven ends in five phases: however and whenever a session ends, nothing is left."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Iterator
from contextlib import ExitStack
from pathlib import Path

import grpc
import pytest
from rearview import failpoints
from rearview.errors import Reason
from rearview.v1 import settings_pb2
from rearview.v1 import translation_service_pb2 as pb
from reliability.in_process import chain_config, tokens_end_in
from support.raw_stream import RawStream, assert_nothing_held, eventually, quickly_stopped
from support.service import InProcessService, in_process_service

from loadtest.reliability.plan import token_of

pytestmark = pytest.mark.integration

OK = grpc.StatusCode.OK
OPEN = pb.TranslateRequest(
    open=pb.Open(
        settings=settings_pb2.Settings(prompt="a"),
        drop_policy=pb.DROP_POLICY_LOSSLESS,
        answer_format=pb.IMAGE_FORMAT_OPAQUE,
    )
)
SECONDS = 0.6
"""Of a call with a deadline: enough to come into any phase."""


@pytest.fixture(autouse=True)
def disarmed() -> Iterator[None]:
    yield
    failpoints.arm("")


# -- phases: what has happened when the session ends


async def before_open(stream: RawStream, service: InProcessService) -> None:
    await eventually(lambda: stream.call is not None)


async def open_sent(stream: RawStream, service: InProcessService) -> None:
    await stream.write(OPEN)


async def warming(stream: RawStream, service: InProcessService) -> None:
    """Open, and its first frames are on their way."""
    await stream.write(OPEN)
    await stream.read()
    await stream.frame(0)


async def streaming(stream: RawStream, service: InProcessService) -> None:
    """Frames were answered, and some are on their way."""
    await warming(stream, service)
    for index in (1, 2, 3):
        await stream.frame(index)
    await stream.read_answers(2)


async def draining(stream: RawStream, service: InProcessService) -> None:
    """The service has said that it will go."""
    await streaming(stream, service)
    for ingress in service.ingresses:
        ingress.drain()


# -- ends, each with the statuses that it may have


Statuses = set[tuple[grpc.StatusCode, Reason | None]]


async def orderly(stream: RawStream, service: InProcessService) -> Statuses:
    await stream.half_close()
    if stream.was_opened:
        return {(OK, None)}
    return {(grpc.StatusCode.FAILED_PRECONDITION, Reason.NOT_OPEN)}


async def cancelled(stream: RawStream, service: InProcessService) -> Statuses:
    stream.call.cancel()
    return {(grpc.StatusCode.CANCELLED, None)}


async def past_its_deadline(stream: RawStream, service: InProcessService) -> Statuses:
    return {(grpc.StatusCode.DEADLINE_EXCEEDED, None)}


async def client_gone(stream: RawStream, service: InProcessService) -> Statuses:
    await stream.channel.close()
    return {(grpc.StatusCode.CANCELLED, None)}


async def server_fails(stream: RawStream, service: InProcessService) -> Statuses:
    """The next thing that the ingress sends raises."""
    failpoints.arm("ingress.answer.before=raise@1x999")
    if not stream.was_opened:
        await stream.write(OPEN)
    await stream.frame(50)
    return {(grpc.StatusCode.INTERNAL, Reason.INTERNAL)}


async def server_stops(stream: RawStream, service: InProcessService) -> Statuses:
    for server in service.servers:
        await server.stop()
    return {
        (grpc.StatusCode.UNAVAILABLE, Reason.DRAINING),
        (grpc.StatusCode.UNAVAILABLE, None),
        (grpc.StatusCode.CANCELLED, None),
    }


async def token_over(stream: RawStream, service: InProcessService) -> Statuses:
    return {(grpc.StatusCode.UNAUTHENTICATED, Reason.TOKEN_EXPIRED)}


Step = Callable[["Stream", InProcessService], Awaitable[object]]
PHASES = [before_open, open_sent, warming, streaming, draining]
ENDS = [orderly, cancelled, past_its_deadline, client_gone, server_fails, server_stops, token_over]


class Stream(RawStream):
    """A call that may have a deadline, and knows whether it has asked for a session."""

    def __init__(self, address: str, timeout_s: float | None) -> None:
        super().__init__(address, token_of("alpha"), timeout_s)
        self.was_opened = False

    async def write(self, request: pb.TranslateRequest) -> None:
        self.was_opened |= request.HasField("open")
        await super().write(request)


@pytest.mark.parametrize("phase", PHASES, ids=lambda phase: phase.__name__)
@pytest.mark.parametrize("end", ENDS, ids=lambda end: end.__name__)
async def test_nothing_is_left_of_a_session(tmp_path: Path, phase: Step, end: Step) -> None:
    with ExitStack() as stack:
        stack.enter_context(quickly_stopped())
        async with in_process_service(chain_config(tmp_path)) as service:
            await _one_session(service)
            tasks = len(asyncio.all_tasks())
            if end is token_over:
                stack.enter_context(tokens_end_in(SECONDS))
            async with Stream(service.address, SECONDS if end is past_its_deadline else None) as stream:
                await phase(stream, service)
                allowed = await end(stream, service)
                if end is client_gone:
                    code, reason = grpc.StatusCode.CANCELLED, None
                else:
                    found = await stream.read_to_end()
                    code, reason = found.code, found.reason
                    assert "Traceback" not in (found.message or "")
                assert (code, reason) in allowed
            failpoints.arm("")
            await assert_nothing_held(service)
            await eventually(lambda: len(asyncio.all_tasks()) <= tasks)


async def _one_session(service: InProcessService) -> None:
    """Links come with the first session, and stay."""
    async with Stream(service.address, None) as stream:
        await streaming(stream, service)
        await stream.half_close()
        await stream.read_to_end()
    await assert_nothing_held(service)
