"""How sessions end: one function for each kind of end, against a running service.

Each opens a session of its own, has a few answers, and ends it. What status the client sees is judged by the
cleanup matrix in the tests; here it counts what is left.
"""

from __future__ import annotations

import asyncio
import contextlib
import signal
import time
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import grpc
from google.protobuf import duration_pb2
from rearview.client.call import Call
from rearview.v1 import session_service_pb2 as session_pb
from rearview.v1 import session_service_pb2_grpc, settings_pb2, translation_service_pb2_grpc
from rearview.v1 import translation_service_pb2 as pb

from loadtest.reliability.harness import Harness, Member
from loadtest.reliability.plan import Plan, StreamPlan, token_of

__all__ = ["ENDS", "Site", "end_one", "schedule"]

FRAMES = 5
DEADLINE_S, TOKEN_S = 0.4, 1.0
END_S = 20.0
"""After that an end is not waited for any more."""


@dataclass
class Site:
    """The service, and what ends need of it."""

    service: Harness
    kept: Member
    """The ingress that is measured."""
    drained: Member
    """The one that is drained, and replaced."""
    issuer: Any
    """Signs tokens."""
    turn: asyncio.Lock = field(default_factory=asyncio.Lock)
    """Of ends that concern a whole process."""

    @property
    def address(self) -> str:
        """Of the ingress that is measured."""
        return f"127.0.0.1:{self.kept.order['port']}"


class Stream:
    """One call with a channel of its own."""

    def __init__(self, address: str, token: str, timeout_s: float | None = None) -> None:
        self.channel = grpc.aio.insecure_channel(address, options=[("grpc.use_local_subchannel_pool", 1)])
        self.metadata = [("authorization", f"Bearer {token}")]
        stub = translation_service_pb2_grpc.TranslationServiceStub(self.channel)
        self.call = Call(stub.Translate(metadata=self.metadata, timeout=timeout_s))
        self.session_id = ""

    async def start(self) -> None:
        """Open a session and have its first answers."""
        settings = settings_pb2.Settings(prompt="a")
        lossless, opaque = pb.DROP_POLICY_LOSSLESS, pb.IMAGE_FORMAT_OPAQUE
        opening = pb.Open(settings=settings, width=64, height=64, drop_policy=lossless, answer_format=opaque)
        await self.call.write(pb.TranslateRequest(open=opening))
        response = await self.call.read()
        if response is None:
            return
        self.session_id = response.opened.session_id
        for index in range(FRAMES):
            await self.frame(index)
        for _ in range(FRAMES - 2):
            await self.call.read()

    async def frame(self, index: int) -> None:
        """Send one."""
        offset = duration_pb2.Duration(seconds=index)
        frame = pb.Frame(
            frame_index=index,
            presentation_offset=offset,
            format=pb.IMAGE_FORMAT_OPAQUE,
            image=b"%d" % index * 100,
        )
        await self.call.write(pb.TranslateRequest(frame=frame))

    async def to_end(self) -> None:
        """Read until the call is over."""
        while await self.call.read() is not None:
            pass

    async def close(self) -> None:
        """Cut the connection."""
        self.call.leave()
        await self.channel.close()


End = Callable[[Site, Stream], Awaitable[None]]


async def _orderly(site: Site, stream: Stream) -> None:
    await stream.start()
    await stream.call.half_close()
    await stream.to_end()


async def _cancelled(site: Site, stream: Stream) -> None:
    await stream.start()
    stream.call.cancel()


async def _cut_off(site: Site, stream: Stream) -> None:
    await stream.start()
    await stream.channel.close()


async def _before_an_answer(site: Site, stream: Stream) -> None:
    settings = settings_pb2.Settings(prompt="a")
    await stream.call.write(pb.TranslateRequest(open=pb.Open(settings=settings, width=64, height=64)))
    await stream.channel.close()


async def _to_its_end(site: Site, stream: Stream) -> None:
    """By its deadline or its token, whichever it has."""
    await stream.start()
    await stream.to_end()


async def _closed(site: Site, stream: Stream) -> None:
    await stream.start()
    request = session_pb.CloseSessionRequest(session_id=stream.session_id)
    await session_service_pb2_grpc.SessionServiceStub(stream.channel).CloseSession(
        request, metadata=stream.metadata
    )
    await stream.to_end()


async def _misused(site: Site, stream: Stream) -> None:
    """More frames than there is credit for."""
    await stream.start()
    for index in range(FRAMES, 200):
        await stream.frame(index)
    await stream.to_end()


async def _failed(site: Site, stream: Stream) -> None:
    """The next thing that the ingress sends, to whomever, raises."""
    await stream.start()
    site.service.arm(site.kept)
    for index in range(FRAMES, FRAMES + 5):
        await stream.frame(index)
    await stream.call.half_close()
    await stream.to_end()


async def _refused(site: Site, stream: Stream) -> None:
    await stream.start()


ENDS: Mapping[str, End] = {
    "orderly": _orderly,
    "cancelled": _cancelled,
    "cut off": _cut_off,
    "cut off before an answer": _before_an_answer,
    "past its deadline": _to_its_end,
    "token over": _to_its_end,
    "closed by the API": _closed,
    "more than its credit": _misused,
    "ingress fails": _failed,
    "refused": _refused,
    "drained": _to_its_end,
    "client killed": _orderly,
}
"""By name. What the last two do is in `end_one`, since they concern more than one session."""
SELDOM = {"drained": 6, "client killed": 3}
"""Of these only every so manieth comes, since they end a process: the others are orderly."""


def schedule(sessions: int) -> list[str]:
    """The ends of so many sessions, all kinds in turn."""
    names = []
    for number in range(sessions):
        turn, at = divmod(number, len(ENDS))
        name = list(ENDS)[at]
        names.append("orderly" if turn % SELDOM.get(name, 1) else name)
    return names


async def end_one(site: Site, name: str) -> None:
    """One session to its end; whatever the client sees of it."""
    with contextlib.suppress(TimeoutError):
        async with asyncio.timeout(END_S):
            if name == "client killed":
                await _kill_client(site)
            elif name == "drained":
                await _drain(site)
            else:
                await _end(site, name)


async def _end(site: Site, name: str) -> None:
    token, timeout_s = token_of("alpha"), None
    if name == "token over":
        token = site.issuer.token(exp=time.time() + TOKEN_S)
    elif name == "refused":
        token = "worth nothing"
    elif name == "past its deadline":
        timeout_s = DEADLINE_S
    stream = Stream(site.address, token, timeout_s)
    try:
        with contextlib.suppress(grpc.aio.AioRpcError):
            await ENDS[name](site, stream)
    finally:
        await stream.close()


async def _kill_client(site: Site) -> None:
    """One of a process of its own, which is killed in the middle."""
    plan = StreamPlan("beta/0", "beta", token_of("beta"), frames=200, rate=30.0)
    async with site.turn:
        client = await site.service.start_clients(
            Plan(0, (plan,)), (site.address,), time.monotonic(), "killed"
        )
        await asyncio.sleep(0.4)
        site.service.signal(client, signal.SIGKILL)
        await client.ended.wait()


async def _drain(site: Site) -> None:
    """One at the other ingress, which is told to go in the middle, and comes back."""
    async with site.turn:
        stream = Stream(f"127.0.0.1:{site.drained.order['port']}", token_of("gamma"))
        try:
            with contextlib.suppress(grpc.aio.AioRpcError):
                await stream.start()
                site.service.signal(site.drained, signal.SIGTERM)
                await stream.to_end()
        finally:
            await stream.close()
            await site.drained.ended.wait()
            await site.service.until(lambda: len(site.service.ingresses()) == 2, END_S)
            site.drained = next(m for m in site.service.ingresses() if m is not site.kept)
            await site.service.until(lambda: site.service.card(site.drained) is not None, END_S)
