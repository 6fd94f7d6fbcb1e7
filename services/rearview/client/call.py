"""One gRPC call, in both directions, with the status that the server gave it.

A write that meets the end of the stream ends the call by grpc.aio's own word, an INTERNAL. From then on its
`read` gives nothing and its `cancel` does nothing; but the stream, and its connection, stay until the answers
that lay there unread were read. So answers are read by the iterator, which goes on to the last of them and
to the server's status, and a call that is left early is read to its end.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine
from typing import Any, TypeVar

import grpc

from rearview.client.faults import loss_of
from rearview.client.losses import Loss
from rearview.v1 import translation_service_pb2 as pb

__all__ = ["Call"]

STATUS_S = 1.0
"""How long the server's status may come after its last message, when a write has failed before."""
_OWN_WORDS = (grpc.StatusCode.INTERNAL, "Internal error from Core")
"""The status that grpc.aio makes up when a write fails."""

_T = TypeVar("_T")


class Call:
    """`Translate`. One task may write while another reads; cancelling either cancels the call."""

    def __init__(
        self,
        call: Any,
        on_left: Callable[..., None] = lambda **_: None,
        judge: Callable[[Loss], Awaitable[Loss]] | None = None,
    ) -> None:
        """`on_left(failed=…)` is told once that the call is not used any more, and whether its server was
        not there. `judge` has the last word on what its failure means.
        """
        self._call, self._on_left, self._judge = call, on_left, judge
        self._is_left = False
        self._responses: AsyncIterator[pb.TranslateResponse] = aiter(call)
        self._status: asyncio.Future[grpc.aio.AioRpcError | None] = asyncio.get_running_loop().create_future()
        """None: OK."""
        self._reading_out: asyncio.Task[None] | None = None
        call.add_done_callback(self._keep_status)

    async def write(self, request: pb.TranslateRequest) -> None:
        """Send a message, waiting for room; nothing happens if the call has ended: `read` says why."""
        with contextlib.suppress(grpc.aio.AioRpcError, asyncio.InvalidStateError):
            await self._call.write(request)

    async def half_close(self) -> None:
        """Say that nothing more will be written."""
        with contextlib.suppress(grpc.aio.AioRpcError, asyncio.InvalidStateError):
            await self._call.done_writing()

    async def read(self) -> pb.TranslateResponse | None:
        """The next message; None when the server has ended the call with OK. Raises AioRpcError."""
        failure = None
        try:
            return await anext(self._responses)
        except StopAsyncIteration:
            pass
        except grpc.aio.AioRpcError as error:
            failure = error
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(STATUS_S):
                failure = await asyncio.shield(self._status)
        if failure is not None:
            raise failure from None
        return None

    async def loss(self, failure: grpc.aio.AioRpcError, address: str) -> Loss:
        """What its failure means for the session."""
        loss = loss_of(failure, address)
        return loss if self._judge is None else await self._judge(loss)

    async def accepted(self) -> None:
        """Return when the server has shown that it is there, or the call has ended."""
        await self._call.initial_metadata()

    def leave(self, *, failed: bool = False) -> None:
        """End the call on this side, when nobody reads any more; `failed`: its server was not there. The
        first word counts.
        """
        self._call.cancel()
        if self._is_left:
            return
        self._is_left = True
        if not self._status.done():
            self._reading_out = asyncio.create_task(self._read_out())
        self._on_left(failed=failed)

    def cancel(self) -> None:
        """Make a `read` that waits fail."""
        self._call.cancel()

    async def _read_out(self) -> None:
        with contextlib.suppress(grpc.aio.AioRpcError):
            async for _ in self._responses:
                pass

    def _keep_status(self, call: Any) -> None:
        """Keep the first that is not grpc.aio's own. It tells each that it is given."""
        code, details = _result_at_once(call.code()), _result_at_once(call.details())
        if code is None or self._status.done() or (code, details) == _OWN_WORDS:
            return
        metadata = _result_at_once(call.trailing_metadata()) or grpc.aio.Metadata()
        failure = grpc.aio.AioRpcError(code, grpc.aio.Metadata(), metadata, details=details)
        self._status.set_result(None if code is grpc.StatusCode.OK else failure)


def _result_at_once(work: Coroutine[Any, Any, _T]) -> _T | None:
    """The result of a coroutine that has no need to wait, as these of a call that has ended; else None."""
    try:
        work.send(None)
    except StopIteration as end:
        result: _T = end.value
        return result
    work.close()
    return None
