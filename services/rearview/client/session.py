"""One session on the client's side, in asyncio: carries out what the machine (`machine.py`) decides.

Two tasks own the gRPC call, so that a user who cancels `send` or stops iterating never cancels the call:

    send ─► Machine ─► writer task ─► call ─► reader task ─► Machine ─► async for

Each event goes into the machine and wakes all who wait; each then asks the machine anew.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from types import TracebackType
from typing import Self, Unpack

import grpc

from rearview.client.answers import Answer, Image, Opened
from rearview.client.call import Call
from rearview.client.faults import no_answer
from rearview.client.ledger import Input
from rearview.client.machine import Connect, HalfClose, Machine, Phase, Wait
from rearview.client.options import OpenOptions, SettingOptions, change_of, checked_settings
from rearview.client.reconnect import Reconnect
from rearview.client.wire import NO_CONTROLS
from rearview.contract.stream import ImageFormat
from rearview.errors import Fault, RearviewError, Reason, StreamEnded
from rearview.v1 import translation_service_pb2 as pb

__all__ = ["Session"]


class Session:
    """An async context manager and an async iterator of answers; made by `Client.open`.

    Every frame sent is answered exactly once, in order, also over lost connections. Leave the block after
    the iteration has ended to have every answer; leaving it earlier closes the session on the server.
    `send` and `control` are called by one task, the iteration runs in the same or another one.
    """

    def __init__(
        self,
        connect: Callable[[], Awaitable[Call]],
        close: Callable[[str], Awaitable[None]],
        options: OpenOptions,
        reconnect: Reconnect,
        address: str,
    ) -> None:
        self._connect, self._close, self._address = connect, close, address
        self._machine = Machine(options, reconnect, address)
        self._changed = asyncio.Event()
        self._task: asyncio.Task[None] | None = None

    async def __aenter__(self) -> Self:
        self._task = asyncio.create_task(self._run(), name="rearview-session")
        try:
            await self._until(self._machine.is_begun)
        except BaseException:
            await self._stop()
            raise
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        kept_id = await self._stop()
        if kept_id is not None:
            # Without this the server would keep the slot for the whole grace time.
            with contextlib.suppress(RearviewError):
                await self._close(kept_id)

    @property
    def opened(self) -> Opened:
        """The open session: its id, model, size and settings."""
        return self._machine.opened

    @property
    def num_connections(self) -> int:
        """How many connections were opened for the session; 1 if none was lost."""
        return self._machine.num_connections

    @property
    def is_connected(self) -> bool:
        """Whether no lost connection is being sought again."""
        return self._machine.phase is not Phase.RESUMING

    async def send(
        self,
        frame: Image | bytes,
        *,
        index: int | None = None,
        presentation_s: float = 0.0,
        format: ImageFormat = ImageFormat.JPEG,
        controls: Mapping[str, Image | bytes] = NO_CONTROLS,
    ) -> int:
        """Send one frame; returns its index when it was handed to gRPC, which waits for credit.

        `frame` is (height, width, 3) uint8 of the size that the controls before it have led to, or bytes in
        `format`. `index` must grow from frame to frame; default: the one after the last. `controls`: by name
        of a ControlNet, what it is shown of this frame, as the frame is given. Raises ValueError for an array
        that cannot be a frame, and the session's error if it has ended.
        """
        return await self._sent(self._machine.frame(frame, index, presentation_s, format, controls))

    async def control(self, **changes: Unpack[SettingOptions]) -> int:
        """Change settings (the fields of `SettingsChange`) from the next frame on.

        Returns the id that `ControlApplied` will carry. With another `width` or `height` the frame that is
        sent next has that size. If the service refuses it, those in that size are
        `Dropped(IMAGE_SIZE_MISMATCH)` until frames come in the size of `ControlApplied.settings` again.
        """
        return await self._sent(self._machine.control(change_of(checked_settings(changes))))

    async def finish(self) -> None:
        """Half-close: nothing more will be sent. The iteration goes on to the last answer, then ends."""
        self._machine.finish()
        self._wake()
        await self._until(self._machine.is_finish_sent)

    def abort(self, error: RearviewError) -> None:
        """End at once: waiting and later calls raise `error`. Leaving the block closes the session."""
        self._machine.abort(error)
        self._wake()

    def __aiter__(self) -> AsyncIterator[Answer]:
        return self

    async def __anext__(self) -> Answer:
        await self._until(self._machine.can_take)
        answer = self._machine.take()
        if answer is None:
            raise StopAsyncIteration
        self._wake()
        return answer

    # -- events

    @staticmethod
    def _now() -> float:
        return asyncio.get_running_loop().time()

    def _wake(self) -> None:
        """Something happened: let all who wait ask the machine again."""
        self._changed.set()
        self._changed = asyncio.Event()

    async def _until(self, condition: Callable[[], bool]) -> None:
        while not condition():
            await self._changed.wait()

    async def _pause(self, wait: Wait) -> None:
        timeout_s = None if wait.until_s is None else max(0.0, wait.until_s - self._now())
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(timeout_s):
                await self._changed.wait()

    async def _sent(self, item: Input) -> int:
        """Wait until the machine has given the item to the writer; returns its number."""
        self._wake()
        try:
            await self._until(lambda: self._machine.is_sent(item))
        except asyncio.CancelledError:
            self._machine.withdraw(item)
            self._wake()
            raise
        return item.number

    # -- the tasks

    async def _run(self) -> None:
        """Connect as long as the machine says so: the task that ends with the session."""
        try:
            while (action := self._machine.connect(self._now())) is not None:
                if isinstance(action, Connect):
                    await self._serve(action)
                else:
                    await self._pause(action)
        except asyncio.CancelledError:
            self._machine.end(StreamEnded(Reason.CLOSED, "the session was left"))
            raise
        except Exception as failure:  # the task's edge: the user must not wait for ever
            error = Fault(Reason.INTERNAL, f"client: {type(failure).__name__}: {failure}")
            error.__cause__ = failure
            self._machine.end(error)
        finally:
            self._wake()

    async def _serve(self, connect: Connect) -> None:
        """One gRPC call, from first message to its end."""
        call = await self._connect()
        writer: asyncio.Task[None] | None = None
        try:
            async with asyncio.timeout(connect.accept_s):
                await call.write(connect.first)
                await call.accepted()
            async with asyncio.timeout(connect.timeout_s):
                response = await call.read()
            self._receive(response)
            writer = asyncio.create_task(_or_cancel(call, self._write(call)))
            await self._read(call)
        except grpc.aio.AioRpcError as failure:
            loss = await call.loss(failure, self._address)
            call.leave(failed=loss.is_elsewhere)
            self._machine.lost(loss, self._now())
        except TimeoutError:
            call.leave(failed=True)
            self._machine.lost(no_answer(self._address), self._now())
        finally:
            call.leave()
            if writer is not None:
                writer.cancel()
                with contextlib.suppress(asyncio.CancelledError):
                    await writer
            self._wake()

    def _receive(self, response: pb.TranslateResponse | None) -> None:
        self._machine.received(response, self._now())
        self._wake()

    async def _read(self, call: Call) -> None:
        while self._machine.phase is not Phase.ENDED:
            await self._until(self._machine.has_room)
            async with asyncio.timeout(self._machine.silence_s):
                response = await call.read()
            self._receive(response)

    async def _write(self, call: Call) -> None:
        while True:
            action = self._machine.next_write(self._now())
            if isinstance(action, Wait):
                await self._pause(action)
                continue
            self._wake()
            await call.write(action.message)
            if isinstance(action, HalfClose):
                await call.half_close()
                self._machine.half_closed()
                self._wake()
                return

    async def _stop(self) -> str | None:
        """End the session and its tasks. Returns the id of one that the server would keep."""
        kept_id = self._machine.leave()
        self._wake()
        if self._task is not None:
            self._task.cancel()
            await asyncio.wait({self._task})  # not awaited itself: its cancellation is not the caller's
        return kept_id


async def _or_cancel(call: Call, work: Awaitable[None]) -> None:
    """Run the writer; if it fails, end the call, so that the reader wakes."""
    try:
        await work
    except Exception:
        call.cancel()
        raise
