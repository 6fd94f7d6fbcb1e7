"""One gRPC call, in both directions, with the status that the server gave it.

grpc.aio overwrites the status of a call with its own INTERNAL when a write meets the end of the stream. The
done callback runs before that, so the first status is kept there, and `read` reports it.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Awaitable, Callable, Coroutine
from typing import Any, TypeVar

import grpc

from rearview.client.faults import loss_of
from rearview.client.losses import Loss
from rearview.v1 import translation_service_pb2 as pb

__all__ = ["Call"]

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
        self._failure: grpc.aio.AioRpcError | None = None
        self._is_ok = False
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
        try:
            response = await self._call.read()
        except grpc.aio.AioRpcError as failure:
            if self._is_ok:
                return None
            raise self._failure or failure from None
        return None if response is grpc.aio.EOF else response

    async def loss(self, failure: grpc.aio.AioRpcError, address: str) -> Loss:
        """What its failure means for the session."""
        loss = loss_of(failure, address)
        return loss if self._judge is None else await self._judge(loss)

    async def accepted(self) -> None:
        """Return when the server has shown that it is there, or the call has ended."""
        await self._call.initial_metadata()

    def leave(self, *, failed: bool = False) -> None:
        """End the call on this side; `failed`: its server was not there. The first word counts."""
        self._call.cancel()
        if not self._is_left:
            self._is_left = True
            self._on_left(failed=failed)

    def cancel(self) -> None:
        """Make a `read` that waits fail."""
        self._call.cancel()

    def _keep_status(self, call: Any) -> None:
        code = _result_at_once(call.code())
        self._is_ok = code is grpc.StatusCode.OK
        if code is None or self._is_ok:
            return
        self._failure = grpc.aio.AioRpcError(
            code,
            grpc.aio.Metadata(),
            _result_at_once(call.trailing_metadata()) or grpc.aio.Metadata(),
            details=_result_at_once(call.details()),
        )


def _result_at_once(work: Coroutine[Any, Any, _T]) -> _T | None:
    """The result of a coroutine that has no need to wait, as these of a call that has ended; else None."""
    try:
        work.send(None)
    except StopIteration as end:
        result: _T = end.value
        return result
    work.close()
    return None
