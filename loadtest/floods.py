"""Clients that ask for more than there is: opens of a service that is full, and a tenant far over its quota.

Each flood runs in a process of its own and keeps to its schedule whatever the server does.
"""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import time
from collections import Counter
from collections.abc import AsyncIterator, Callable, Coroutine, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any, TypeVar

import grpc
from google.rpc import error_details_pb2
from grpc_status import rpc_status
from rearview.v1 import settings_pb2, translation_service_pb2_grpc
from rearview.v1 import translation_service_pb2 as pb

__all__ = ["Greedy", "Refusals", "Sending", "Target", "flood_frames", "flood_opens"]

CONNECTIONS = 4
END_S = 10.0
"""How long the last answers may take."""

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Target:
    """Whom to ask, as whom."""

    address: str
    token: str
    after_s: float
    """When to begin."""
    seconds: float


@dataclass(frozen=True, slots=True)
class Sending:
    """What a tenant sends on one stream, and when."""

    frames_per_s: float
    declared_per_s: float
    """What the session was opened for."""
    image: bytes = field(repr=False)
    format: pb.ImageFormat.ValueType = pb.IMAGE_FORMAT_OPAQUE
    size: int = 256
    """Width and height, pixels."""
    controls: int = 0
    """After each frame."""
    adapters: Sequence[str] = ()
    """Each control asks for the next of these sets; none: for another prompt."""

    def control(self, number: int) -> pb.Control:
        """The session's control of that number, from 1 on."""
        settings = settings_pb2.Settings(prompt=f"{number}")
        if self.adapters:
            settings = settings_pb2.Settings(adapters=self.adapters[number % len(self.adapters)])
        return pb.Control(control_id=number, settings=settings)


@dataclass(slots=True)
class Refusals:
    """How opens were refused."""

    seconds: list[float] = field(default_factory=list)
    """From when each was due to its status."""
    reasons: Counter[str] = field(default_factory=Counter)
    without_retry: int = 0
    """Refusals that did not say when to try again."""


@dataclass(slots=True)
class Greedy:
    """What a tenant over its quota has done."""

    frames: int = 0
    controls: int = 0
    ends: Counter[str] = field(default_factory=Counter)
    """Why its sessions ended."""


def flood_opens(target: Target, opens_per_s: float) -> Refusals:
    """Ask for sessions on schedule, over a few connections."""
    return asyncio.run(_opens(target, opens_per_s))


def flood_frames(target: Target, sending: Sending) -> Greedy:
    """One session after another that sends frames on schedule and controls between them, as far as the
    server reads them. Credit is not looked at.
    """
    return asyncio.run(_frames(target, sending))


async def _opens(target: Target, opens_per_s: float) -> Refusals:
    found = Refusals()
    await asyncio.sleep(target.after_s)
    async with _stubs(target) as stubs:
        asked = await _on_schedule(
            target.seconds,
            opens_per_s,
            lambda number, due_s: _open(stubs[number % len(stubs)], target, due_s, found),
        )
        await asyncio.wait(asked, timeout=END_S)
    return found


async def _open(
    stub: translation_service_pb2_grpc.TranslationServiceAsyncStub,
    target: Target,
    due_s: float,
    found: Refusals,
) -> None:
    call = stub.Translate(metadata=_metadata(target))
    with contextlib.suppress(grpc.aio.AioRpcError, asyncio.InvalidStateError):
        await call.write(pb.TranslateRequest(open=pb.Open(settings=settings_pb2.Settings(prompt="a"))))
        if await call.read() is not grpc.aio.EOF:
            found.reasons["opened"] += 1
            call.cancel()
            return
    code = await call.code()
    found.seconds.append(time.monotonic() - due_s)
    reason, retries = await _why(call)
    found.reasons[reason or code.name] += 1
    found.without_retry += not retries


async def _frames(target: Target, sending: Sending) -> Greedy:
    await asyncio.sleep(target.after_s)
    done, end_s = Greedy(), time.monotonic() + target.seconds
    opening = pb.Open(
        width=sending.size,
        height=sending.size,
        settings=settings_pb2.Settings(prompt="a"),
        frame_rate=sending.declared_per_s,
    )
    async with _stubs(target) as stubs:
        while time.monotonic() < end_s:
            call = stubs[0].Translate(metadata=_metadata(target))
            # A write that the server does not read must not last beyond the flood.
            with contextlib.suppress(grpc.aio.AioRpcError, asyncio.InvalidStateError, TimeoutError):
                async with asyncio.timeout(end_s - time.monotonic()):
                    await call.write(pb.TranslateRequest(open=opening))
                    await call.read()
                    await _send(call, sending, done)
            call.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                reason, _ = await _why(call)
                done.ends[reason or "cancelled"] += 1
            await asyncio.sleep(0.05)
    return done


async def _send(call: grpc.aio.StreamStreamCall[Any, Any], sending: Sending, done: Greedy) -> None:
    """Until the call ends, or this is cancelled."""
    began_s, reading = time.monotonic(), asyncio.create_task(_read(call))
    frame, controls = pb.Frame(format=sending.format, image=sending.image), itertools.count(1)
    try:
        for number in itertools.count():
            if reading.done():
                return
            await asyncio.sleep(max(0.0, began_s + number / sending.frames_per_s - time.monotonic()))
            frame.frame_index = number
            await call.write(pb.TranslateRequest(frame=frame))
            done.frames += 1
            for control in itertools.islice(controls, sending.controls):
                await call.write(pb.TranslateRequest(control=sending.control(control)))
                done.controls += 1
    finally:
        reading.cancel()
        await asyncio.gather(reading, return_exceptions=True)


async def _read(call: grpc.aio.StreamStreamCall[Any, Any]) -> None:
    with contextlib.suppress(grpc.aio.AioRpcError):
        while await call.read() is not grpc.aio.EOF:
            pass


async def _on_schedule(
    seconds: float, per_s: float, begin: Callable[[int, float], Coroutine[Any, Any, T]]
) -> set[asyncio.Task[T]]:
    began_s, tasks = time.monotonic(), set[asyncio.Task[T]]()
    for number in range(round(seconds * per_s)):
        due_s = began_s + number / per_s
        await asyncio.sleep(max(0.0, due_s - time.monotonic()))
        tasks.add(asyncio.create_task(begin(number, due_s)))
    return tasks


@asynccontextmanager
async def _stubs(
    target: Target,
) -> AsyncIterator[list[translation_service_pb2_grpc.TranslationServiceAsyncStub]]:
    options = [("grpc.use_local_subchannel_pool", 1)]
    channels = [grpc.aio.insecure_channel(target.address, options=options) for _ in range(CONNECTIONS)]
    try:
        yield [translation_service_pb2_grpc.TranslationServiceStub(channel) for channel in channels]
    finally:
        for channel in channels:
            await channel.close()


def _metadata(target: Target) -> list[tuple[str, str]]:
    return [("authorization", f"Bearer {target.token}")]


async def _why(call: grpc.aio.StreamStreamCall[Any, Any]) -> tuple[str, bool]:
    """The reason that the status names, and whether it says when to try again."""
    status = await rpc_status.aio.from_call(call)
    reason, retries = "", False
    for detail in [] if status is None else status.details:
        info = error_details_pb2.ErrorInfo()
        if detail.Unpack(info):
            reason = info.reason
        retries = retries or detail.Is(error_details_pb2.RetryInfo.DESCRIPTOR)
    return reason, retries
