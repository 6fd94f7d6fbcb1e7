"""What every call passes before its handler: whose it is, how many there are, what its bytes say.

A gRPC interceptor, so that nobody can add a method and forget it. Requests reach it as bytes: what cannot be
read, or is too large, is refused with a reason, where gRPC's own parsing would log a fault and answer
INTERNAL. Whose call it is, its metadata says: of a call that is not let in no request is read. Every error
leaves here as a status with details. All methods but those of the health service need a tenant; those are
bounded by address.
"""

from __future__ import annotations

import inspect
import logging
from collections import Counter
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager
from typing import Any, TypeAlias

import grpc
from google.protobuf.message import DecodeError
from grpc_health.v1 import health

from rearview.access import PeerLimits
from rearview.contract.events import CallEnded, Events
from rearview.errors import Fault, InvalidRequest, RearviewError, Reason, Refused
from rearview.ingress.auth import Caller
from rearview.ingress.callers import Context, Parse, ReadingContext
from rearview.ingress.running import RunningCalls
from rearview.ingress.status import abort
from rearview.telemetry.logging import concerns, log_fault

__all__ = ["OVERSIZE", "Door"]

logger = logging.getLogger(__name__)

OVERSIZE = 4
"""gRPC takes messages of up to so many times the limit, so that their refusal can say why."""
RETRY_AFTER_S = 5.0
_OPEN = f"/{health.SERVICE_NAME}/"

Details = grpc.HandlerCallDetails
Handler: TypeAlias = "grpc.RpcMethodHandler[Any, Any] | None"


class Door(grpc.aio.ServerInterceptor):
    """Lets calls in. For one event loop."""

    def __init__(
        self, running: RunningCalls, limits: PeerLimits, max_message_bytes: int, events: Events
    ) -> None:
        self._running, self._limits = running, limits
        self._max_message_bytes, self._events = max_message_bytes, events
        self._open_calls: Counter[str] = Counter()
        """Calls without a tenant that are running, by address."""

    async def intercept_service(
        self, continuation: Callable[[Details], Awaitable[Handler]], handler_call_details: Details
    ) -> Handler:
        """The method's handler, guarded; None where there is no such method."""
        handler = await continuation(handler_call_details)
        if handler is None:
            return None
        is_open = handler_call_details.method.startswith(_OPEN)
        answers = _arity(handler.response_streaming)
        behaviour = getattr(handler, f"{_arity(handler.request_streaming)}_{answers}")
        guarded = self._guarded(handler, behaviour, is_open=is_open)
        # Of a unary method gRPC would read the request first. Without a deserializer it hands over the bytes.
        make: Callable[..., Handler] = getattr(grpc, f"stream_{answers}_rpc_method_handler")
        return make(guarded, None, handler.response_serializer)

    def _guarded(self, handler: Any, behaviour: Callable[..., Any], *, is_open: bool) -> Callable[..., Any]:
        """`behaviour` behind all checks: a coroutine function, or a generator where it is one."""
        parse = self._parser(handler.request_deserializer)
        admitted = self._counted if is_open else self._known
        first: Callable[[ReadingContext], Any]
        first = ReadingContext.requests if handler.request_streaming else ReadingContext.request

        async def call(_: Any, context: Context) -> Any:
            try:
                with admitted(context) as caller:
                    reading = ReadingContext(context, parse, caller)
                    return await behaviour(await _resolved(first(reading)), reading)
            except Exception as error:  # The edge of a call: what was not foreseen ends this call only.
                await self._end(context, error)

        async def generate(_: Any, context: Context) -> Any:
            try:
                with admitted(context) as caller:
                    reading = ReadingContext(context, parse, caller)
                    async for response in behaviour(await _resolved(first(reading)), reading):
                        yield response
            except Exception as error:
                await self._end(context, error)

        return generate if inspect.isasyncgenfunction(behaviour) else call

    @contextmanager
    def _known(self, context: Context) -> Iterator[Caller]:
        """Raises InvalidRequest for nobody's token, at once or when it ends."""
        with self._running.let_in(context.invocation_metadata() or ()) as caller:
            concerns(tenant=caller.tenant.name)  # gRPC runs each call in a task of its own.
            yield caller

    @contextmanager
    def _counted(self, context: Context) -> Iterator[None]:
        """Raises Refused(CALLS_EXHAUSTED)."""
        address, most = address_of(context.peer()), self._limits.max_open_calls
        if self._open_calls[address] >= most:
            text = f"an address may have {most} calls without a tenant at a time"
            raise Refused(Reason.CALLS_EXHAUSTED, text, retry_after_s=RETRY_AFTER_S)
        self._open_calls[address] += 1
        try:
            yield
        finally:
            self._open_calls[address] -= 1
            self._open_calls += Counter()  # Without those at zero.

    def _parser(self, deserializer: Parse) -> Parse:
        limit = self._max_message_bytes

        def parse(content: bytes) -> Any:
            if len(content) > limit:
                numbers = {"limit_bytes": str(limit), "message_bytes": str(len(content))}
                text = f"a request of {len(content)} bytes, where {limit} are taken"
                raise InvalidRequest(Reason.MESSAGE_TOO_LARGE, text, metadata=numbers)
            try:
                return deserializer(content)
            except DecodeError:  # Its text quotes nothing, and helps nobody.
                raise InvalidRequest(
                    Reason.MESSAGE_INVALID, "bytes that are no message of this method"
                ) from None

        return parse

    async def _end(self, context: Context, error: Exception) -> None:
        """End the call with the error's status; no exception's text but our own reaches a client."""
        if isinstance(error, grpc.aio.AbortError):
            raise error
        if isinstance(error, grpc.aio.BaseError):
            logger.debug("the client is gone")
            return
        if isinstance(error, NotImplementedError):  # Of generated code, for a method that nobody wrote.
            await context.abort(grpc.StatusCode.UNIMPLEMENTED, "the method is not served")
        if not isinstance(error, RearviewError):
            error = Fault(metadata={"error_id": log_fault(logger, "call failed", error)})
        self._events(CallEnded(error.reason))
        await abort(context, error)


def address_of(peer: str) -> str:
    """Without its port: `ipv4:10.0.0.1:5000` → `ipv4:10.0.0.1`."""
    return peer.rpartition(":")[0] or peer


def _arity(is_stream: bool) -> str:
    return "stream" if is_stream else "unary"


async def _resolved(first: Any) -> Any:
    """What the handler gets first: the request of a unary method, the requests of a stream."""
    return await first if inspect.isawaitable(first) else first
