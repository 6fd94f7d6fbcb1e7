"""Bugs to plant, each with the validator that must find it: who checks the checker.

A bug is a patch of the running service, at the gRPC surface wherever that is possible, so that it stays the
same bug when the code behind it changes.
"""

from __future__ import annotations

import asyncio
import traceback
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, nullcontext
from dataclasses import dataclass, replace
from typing import Any
from unittest import mock

import grpc
from rearview.contract.events import FrameAnswered
from rearview.contract.stream import DropPolicy
from rearview.engine.memory.chain.pool import Chains
from rearview.errors import InvalidRequest, Refused
from rearview.ingress import servicer
from rearview.ingress.auth import Tenants
from rearview.ingress.service import Ingress
from rearview.ingress.stream import TranslateStream
from rearview.replica.sessions import Sessions
from rearview.telemetry.listener import MetricsListener
from rearview.v1 import translation_service_pb2 as pb

from loadtest.reliability.plan import ClientKind, Expected, Plan, StreamPlan, token_of

__all__ = ["BUGS", "Bug"]

AT = 10
"""The frame at which a bug shows."""
LATE_S = 1.5
QUEUE_S = 1.0


@dataclass(frozen=True, slots=True)
class Bug:
    """What to plant, into which traffic, and who must find it."""

    validator: str
    text: str
    """Part of what the validator says."""
    plant: Callable[[], Any]
    """A context manager."""
    plan: Plan
    slots: int = 16


class Wrapped:
    """A servicer's context that is almost what it was."""

    def __init__(self, context: Any) -> None:
        self._context = context

    def __getattr__(self, name: str) -> Any:
        return getattr(self._context, name)

    async def read(self) -> Any:
        """Of the client."""
        return await self._context.read()

    async def write(self, message: pb.TranslateResponse) -> None:
        """To the client."""
        await self._context.write(message)


def _is_frame(message: pb.TranslateResponse, index: int = AT) -> bool:
    return message.HasField("frame") and message.frame.frame_index == index


class Drops(Wrapped):
    """One answer is lost."""

    async def write(self, message: pb.TranslateResponse) -> None:
        if not _is_frame(message):
            await super().write(message)


class SendsTwice(Wrapped):
    """One answer comes twice."""

    async def write(self, message: pb.TranslateResponse) -> None:
        await super().write(message)
        if _is_frame(message):
            await super().write(message)


class Swaps(Wrapped):
    """Two answers change their places."""

    held: pb.TranslateResponse | None = None

    async def write(self, message: pb.TranslateResponse) -> None:
        if _is_frame(message):
            self.held = message
            return
        await super().write(message)
        if self.held is not None and message.HasField("frame"):
            held, self.held = self.held, None
            held.frame_credit = message.frame_credit
            await super().write(held)


class Mixes(Wrapped):
    """A picture goes to another session."""

    last: dict[int, bytes] = {}

    async def write(self, message: pb.TranslateResponse) -> None:
        if message.HasField("frame"):
            others = [image for who, image in self.last.items() if who != id(self)]
            self.last[id(self)] = message.frame.image
            if _is_frame(message) and others:
                message.frame.image = others[0]
        await super().write(message)


class IsLate(Wrapped):
    """One picture waits, and is delivered all the same."""

    async def write(self, message: pb.TranslateResponse) -> None:
        if _is_frame(message):
            await asyncio.sleep(LATE_S)
        await super().write(message)


class Tells(Wrapped):
    """The client sees what is inside."""

    async def write(self, message: pb.TranslateResponse) -> None:
        if not _is_frame(message):
            return await super().write(message)
        try:
            raise RuntimeError("planted")
        except RuntimeError:
            text = traceback.format_exc()
        return await self._context.abort(grpc.StatusCode.INTERNAL, text)


class Hangs(Wrapped):
    """A half-close is never seen."""

    async def read(self) -> Any:
        message = await super().read()
        if not isinstance(message, pb.TranslateRequest):
            await asyncio.Event().wait()
        return message


class SaysExact(Wrapped):
    """The client is told that the session has moved, with all its past."""

    async def write(self, message: pb.TranslateResponse) -> None:
        if _is_frame(message, RESET_AT):
            notice = pb.Notice(kind=pb.Notice.KIND_MOVED, continuity=pb.CONTINUITY_EXACT)
            await super().write(pb.TranslateResponse(notice=notice, frame_credit=message.frame_credit))
        await super().write(message)


RESET_AT = AT


def _surface(kind: type[Wrapped]) -> Callable[[], Any]:
    def stream(ingress: Ingress, context: Any, *others: Any) -> TranslateStream:
        return TranslateStream(ingress, kind(context), *others)

    return lambda: mock.patch.object(servicer, "TranslateStream", stream)


@contextmanager
def _resets(*also: Callable[[], Any]) -> Iterator[None]:
    """A session forgets its past."""
    commit, done = Chains._commit, []

    def forgetful(self: Chains, where: Any, chain_B16: Any) -> None:
        commit(self, where, chain_B16)
        names = {self._slots.slot(name): name for name in self._sessions}
        for slot, count in zip(where[0].tolist(), self._counts[where].tolist(), strict=True):
            # Not of a session without an id, which is there to be timed, before any client comes.
            if not done and count == RESET_AT and names[slot]:
                done.append(slot)
                self.reset(names[slot])

    with ExitStack() as stack:
        stack.enter_context(mock.patch.object(Chains, "_commit", forgetful))
        for each in also:
            stack.enter_context(each())
        yield


def _leaks_slot() -> Any:
    close, seen = Sessions.close, []

    def leaky(self: Sessions[Any], session_id: str, epoch: int) -> bool:
        if session_id not in seen:
            seen.append(session_id)
        # Not the first one, which comes before the traffic.
        return seen.index(session_id) != 1 and close(self, session_id, epoch)

    return mock.patch.object(Sessions, "close", leaky)


def _queues() -> Any:
    open_ = Ingress.open

    async def queueing(self: Ingress, *arguments: Any) -> Any:
        for _ in range(10):
            try:
                return await open_(self, *arguments)
            except Refused as refused:
                error = refused
                await asyncio.sleep(QUEUE_S / 10)
        raise error

    return mock.patch.object(Ingress, "open", queueing)


def _lets_in() -> Any:
    authenticate = Tenants.authenticate

    def generous(self: Tenants, metadata: Any) -> Any:
        try:
            return authenticate(self, metadata)
        except InvalidRequest:
            return authenticate(self, [("authorization", f"Bearer {token_of('alpha')}")])

    return mock.patch.object(Tenants, "authenticate", generous)


def _miscounts() -> Any:
    call, seen = MetricsListener.__call__, []

    def careless(self: MetricsListener, event: Any) -> None:
        if isinstance(event, FrameAnswered):
            seen.append(event)
            if len(seen) % 10 == 0:
                return
        call(self, event)

    return mock.patch.object(MetricsListener, "__call__", careless)


def _stream(number: int, **fields: Any) -> StreamPlan:
    tenant = "alpha" if number % 2 else "beta"
    wanted = {"client": ClientKind.RAW, "frames": 24, "rate": 60.0, **fields}
    return StreamPlan(f"{tenant}/{number}", tenant, token_of(tenant), **wanted)


PLAIN = Plan(streams=(_stream(0), _stream(1), _stream(2)))
DEADLINE = Plan(streams=(_stream(0, policy=DropPolicy.DEADLINE),))
FULL = Plan(
    streams=tuple(_stream(n, expected=Expected.EITHER, start_s=0.05 * n, frames=100) for n in range(4))
)
OVER = Plan(streams=tuple(_stream(number, token_until_s=0.2, frames=240) for number in (0, 1)))
STRANGER = Plan(streams=(_stream(0), replace(_stream(1), token="worth nothing", expected=Expected.REFUSED)))

BUGS = {
    "drop silently": Bug("V1", "have no outcome", _surface(Drops), PLAIN),
    "send twice": Bug("V3", "second outcome", _surface(SendsTwice), PLAIN),
    "swap two": Bug("V2", "came after", _surface(Swaps), PLAIN),
    "mix two sessions": Bug("V4", "another session", _surface(Mixes), PLAIN),
    "reset state silently": Bug("V8", "its past began anew", _resets, PLAIN),
    "say EXACT falsely": Bug("V8", "said EXACT", lambda: _resets(_surface(SaysExact)), PLAIN),
    "leak a slot": Bug("V7", "slots are held", _leaks_slot, PLAIN),
    "queue instead of refuse": Bug("V6", "refused after", _queues, FULL, slots=2),
    "answer late": Bug("V5", "are allowed", _surface(IsLate), DEADLINE),
    "leak a traceback": Bug("V10", "its end says", _surface(Tells), PLAIN),
    "skip token expiry": Bug("V10", "token's end", nullcontext, OVER),
    "skip the token": Bug("V10", "a token that is worth nothing", _lets_in, STRANGER),
    "count wrongly": Bug("V9", "frames translated", _miscounts, PLAIN),
    "hang on half-close": Bug("V1", "all is answered", _surface(Hangs), PLAIN),
}
"""By name: the twelve of the method, a token that nobody looks at, and a continuity that is not true. To skip
a token's expiry is to take one that says nothing of it.
"""
