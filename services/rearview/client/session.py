"""One session on the client's side: sends in order under credit, receives, reconnects, answers flow control.

Two tasks own the gRPC call, so that a user who cancels `send` or stops iterating never cancels the call:

    send ─► Ledger ─► writer task ─► call ─► reader task ─► answers ─► async for

A slow reader is bounded twice: the server may send `answer_window` answers more than were taken, and the
reader task stops reading when so many are waiting.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections import deque
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import replace
from itertools import count
from types import TracebackType
from typing import Self, Unpack

import grpc
import numpy as np

from rearview.client import wire
from rearview.client.answers import (
    Answer,
    Dropped,
    Image,
    Notice,
    Opened,
    Translated,
)
from rearview.client.call import Call
from rearview.client.faults import Unreachable, error_of, is_transient
from rearview.client.ledger import Input, Ledger
from rearview.client.options import OpenOptions, SettingOptions, change_of
from rearview.client.reconnect import Attempts, Reconnect
from rearview.contract.stream import ImageFormat, NoticeKind
from rearview.errors import Fault, NotFound, RearviewError, Reason, StreamEnded
from rearview.v1 import translation_service_pb2 as pb

__all__ = ["Session"]

ACK_EVERY_ANSWERS = 4
"""A `credit` message is sent after so many answers, so that the server can forget them."""


class Session:
    """An async context manager and an async iterator of answers; made by `Client.open`.

    Every frame sent is answered exactly once, in order, also over lost connections. Leave the block after
    the iteration has ended to have every answer; leaving it earlier closes the session on the server.
    `send` and `control` are called by one task, the iteration runs in the same or another one.
    """

    def __init__(
        self,
        connect: Callable[[], Call],
        close: Callable[[str], Awaitable[None]],
        options: OpenOptions,
        reconnect: Reconnect,
        address: str,
    ) -> None:
        self._connect, self._close, self._address = connect, close, address
        self._options, self._reconnect = options, reconnect
        self._window = options.get("answer_window", 32)
        if self._window < 1:
            raise ValueError(f"answer_window must be at least 1, not {self._window}")
        self._send_quality = options.get("send_quality", 90)
        self._ledger = Ledger()
        self._opened: Opened | None = None
        self._answers: deque[Answer] = deque()
        self._taken_answers = 0
        self._told = (0, 0)
        self._next_index = 0
        self._last_index = -1
        self._control_ids = count(1)
        self._finishing = False
        self._finish_sent = False
        self._ended = False
        self._aborted = False
        self._error: RearviewError | None = None
        self._to_write, self._to_take, self._room = asyncio.Event(), asyncio.Event(), asyncio.Event()
        self._changed = asyncio.Event()
        self._sending: set[asyncio.Future[None]] = set()
        self._task: asyncio.Task[None] | None = None
        self._connections = 0
        self._begun_s: float | None = None
        self._attempts = Attempts(reconnect)

    async def __aenter__(self) -> Self:
        self._task = asyncio.create_task(self._run(), name="rearview-session")
        try:
            while self._opened is None and not self._ended:
                await self._wait(self._changed)
        except BaseException:
            await self._stop()
            raise
        if self._error is not None:
            raise self._error
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        abandoned = not self._ended or self._aborted or isinstance(self._error, Fault)
        await self._stop()
        if abandoned and self._opened is not None:
            # Without this the server would keep the slot for the whole grace time.
            with contextlib.suppress(RearviewError):
                await self._close(self._opened.session_id)

    @property
    def opened(self) -> Opened:
        """The open session: its id, model, size and settings."""
        assert self._opened is not None, "enter the session with `async with` first"
        return self._opened

    @property
    def num_connections(self) -> int:
        """How many connections were opened for the session; 1 if none was lost."""
        return self._connections

    async def send(
        self,
        frame: Image | bytes,
        *,
        index: int | None = None,
        presentation_s: float = 0.0,
        format: ImageFormat = ImageFormat.JPEG,
    ) -> int:
        """Send one frame; returns its index when it was handed to gRPC, which waits for credit.

        `frame` is (height, width, 3) uint8 of the session's size, or bytes in `format`. `index` must grow
        from frame to frame; default: the one after the last. Raises ValueError for an array that cannot
        be a frame, and the session's error if it has ended.
        """
        self._check_open()
        index = self._next_index if index is None else index
        if index <= self._last_index:
            raise ValueError(f"frame index {index} is not greater than {self._last_index}")
        if not isinstance(frame, bytes):
            frame, format = self._encode(frame)
        self._last_index, self._next_index = index, index + 1
        await self._submit(Input(wire.frame_request(index, presentation_s, frame, format), index, True))
        return index

    async def control(self, **changes: Unpack[SettingOptions]) -> int:
        """Change settings (the fields of `SettingsChange`) from the next frame on.

        Returns the id that `ControlApplied` will carry.
        """
        self._check_open()
        number = next(self._control_ids)
        await self._submit(Input(wire.control_request(number, change_of(changes)), number, False))
        return number

    async def finish(self) -> None:
        """Half-close: nothing more will be sent. The iteration goes on to the last answer, then ends."""
        self._check_open()
        self._finishing = True
        self._to_write.set()
        while not self._finish_sent and not self._ended:
            await self._wait(self._changed)
        if self._error is not None:
            raise self._error

    def abort(self, error: RearviewError) -> None:
        """End at once: waiting and later calls raise `error`. Leaving the block closes the session."""
        if not self._ended:
            self._aborted = True
            self._end(error)

    def __aiter__(self) -> AsyncIterator[Answer]:
        return self

    async def __anext__(self) -> Answer:
        while not self._answers:
            if self._ended:
                if self._error is not None:
                    raise self._error
                raise StopAsyncIteration
            await self._wait(self._to_take)
        answer = self._answers.popleft()
        self._taken_answers += isinstance(answer, Translated | Dropped)
        self._room.set()
        self._to_write.set()
        return answer

    # -- sending

    def _check_open(self) -> None:
        if self._error is not None:
            raise self._error
        if self._finishing or self._ended:
            raise StreamEnded(Reason.CLOSED, "the session is finished: open another one")

    def _encode(self, image: Image) -> tuple[bytes, ImageFormat]:
        shape = (self.opened.height, self.opened.width, 3)
        if image.shape != shape or image.dtype != np.uint8:
            raise ValueError(f"a frame must be uint8 {shape}, not {image.dtype} {image.shape}")
        if self._send_quality == 0:
            return image.tobytes(), ImageFormat.RGB
        return wire.encode_jpeg(image, self._send_quality), ImageFormat.JPEG

    async def _submit(self, item: Input) -> None:
        sent: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        item.on_taken = lambda: None if sent.done() else sent.set_result(None)
        self._sending.add(sent)
        self._ledger.submit(item)
        self._to_write.set()
        try:
            await sent
        except asyncio.CancelledError:
            self._ledger.withdraw(item)
            raise
        finally:
            self._sending.discard(sent)

    async def _write_loop(self, call: Call) -> None:
        clock = asyncio.get_running_loop().time
        heartbeat_s = max(0.05, self.opened.idle_timeout_s / 3) if self.opened.idle_timeout_s else 3.0
        beat_s = clock() + heartbeat_s
        while True:
            self._to_write.clear()
            if await self._write_ready(call):
                beat_s = clock() + heartbeat_s
            if self._finishing and not self._ledger.has_outgoing:
                await self._half_close(call)
                return
            if self._is_waiting and clock() >= beat_s:
                await self._write_credit(call)
                beat_s = clock() + heartbeat_s
            await self._wait(self._to_write, max(0.0, beat_s - clock()) if self._is_waiting else None)

    async def _write_ready(self, call: Call) -> bool:
        wrote = False
        while (item := self._ledger.take(asyncio.get_running_loop().time())) is not None:
            await call.write(item.message)
            wrote = True
        if self._credit_is_due:
            await self._write_credit(call)
            wrote = True
        return wrote

    async def _half_close(self, call: Call) -> None:
        # No credit can follow: allow all that is left. The reader's own bound still holds.
        await call.write(wire.credit_request(self._ledger.sent_frames, self._ledger.received_answers))
        await call.half_close()
        self._finish_sent = True
        self._changed.set()

    @property
    def _is_waiting(self) -> bool:
        """Whether silence would be the server's or the reader's doing, so that it must not end the stream."""
        return not self._ledger.is_empty or bool(self._answers)

    @property
    def _credit_is_due(self) -> bool:
        received, taken = self._told
        return (
            self._ledger.received_answers - received >= ACK_EVERY_ANSWERS
            or self._taken_answers - taken >= max(1, self._window // 4)
        )

    async def _write_credit(self, call: Call) -> None:
        self._told = (self._ledger.received_answers, self._taken_answers)
        await call.write(wire.credit_request(self._answer_credit, self._ledger.received_answers))

    @property
    def _answer_credit(self) -> int:
        return self._taken_answers + self._window

    # -- receiving

    async def _read_loop(self, call: Call) -> None:
        while True:
            while len(self._answers) >= self._window:
                self._room.clear()
                await self._room.wait()
            response = await call.read()
            if response is None:
                return
            self._receive(response)

    def _receive(self, response: pb.TranslateResponse) -> None:
        if response.frame_credit > self._ledger.frame_credit:
            self._ledger.frame_credit = response.frame_credit
            self._to_write.set()
        answer = self._answer_of(response)
        if answer is not None:
            self._push(answer)

    def _push(self, answer: Answer) -> None:
        self._answers.append(answer)
        self._to_take.set()
        self._to_write.set()

    def _answer_of(self, response: pb.TranslateResponse) -> Answer | None:
        match response.WhichOneof("message"):
            case "frame":
                return wire.translated(response.frame, self.opened, self._settle(response.frame.frame_index))
            case "dropped":
                return wire.dropped(response.dropped, self._settle(response.dropped.frame_index))
            case "control_applied":
                applied = response.control_applied
                item = self._ledger.control_answered(applied.control_id, applied.settings)
                return wire.control_applied(applied, item.frames_before) if item is not None else None
            case "notice":
                return wire.notice(response.notice)
            case _:
                return None

    def _settle(self, frame_index: int) -> float:
        """Mark a frame as answered; returns its round trip in seconds."""
        taken_s = self._ledger.answered(frame_index).taken_s
        self._attempts.renew()
        assert taken_s is not None, f"frame {frame_index} was answered before it was sent"
        return asyncio.get_running_loop().time() - taken_s

    # -- connections

    async def _run(self) -> None:
        error: RearviewError | None = None
        try:
            await self._keep_connected()
        except asyncio.CancelledError:
            self._end(StreamEnded(Reason.CLOSED, "the session was left"))
            raise
        except RearviewError as failure:
            error = failure
        except Exception as failure:  # the task's edge: the user must not wait for ever
            error = Fault(Reason.INTERNAL, f"client: {type(failure).__name__}: {failure}")
            error.__cause__ = failure
        self._end(error)

    async def _keep_connected(self) -> None:
        clock = asyncio.get_running_loop().time
        while True:
            self._begun_s = None
            try:
                await self._serve_connection()
                return
            except (grpc.aio.AioRpcError, Unreachable) as failure:
                error = self._worth_a_retry(failure)
            if error is None:
                return
            if self._connected_for_s > self._reconnect.max_wait_s:
                self._attempts.renew()
            wait_s = self._attempts.wait_s(clock(), self._give_up_after_s, error.retry_after_s)
            if wait_s is None:
                raise self._not_resumed(error) if self._opened is not None else error
            await asyncio.sleep(wait_s)

    def _worth_a_retry(self, failure: grpc.aio.AioRpcError | Unreachable) -> RearviewError | None:
        """The error of a lost connection; None if all was done. Raises it where trying again cannot help."""
        if isinstance(failure, Unreachable):
            return failure
        error = error_of(failure, self._address)
        if isinstance(error, NotFound) and self._opened is not None:
            if self._finish_sent and self._ledger.is_empty:
                return None  # only the final OK was lost
            raise self._not_resumed(error) from failure
        # A fault of the server's while opening would only come again.
        if not is_transient(failure, error) or (self._opened is None and isinstance(error, Fault)):
            raise error from failure
        return error

    @property
    def _connected_for_s(self) -> float:
        """How long the last connection stood; 0 if it never did."""
        return 0.0 if self._begun_s is None else asyncio.get_running_loop().time() - self._begun_s

    @property
    def _give_up_after_s(self) -> float:
        if self._opened is None:
            return self._reconnect.open_timeout_s
        limit = self._reconnect.give_up_after_s
        return self._opened.resume_grace_s if limit is None else limit

    def _not_resumed(self, error: RearviewError) -> RearviewError:
        count = self._ledger.num_unanswered_frames
        text = f"the session is lost, {count} frames are unanswered: {error.message}"
        kind = NotFound if isinstance(error, NotFound) else StreamEnded
        return kind(error.reason, text, retry_after_s=error.retry_after_s, metadata=error.metadata)

    async def _serve_connection(self) -> None:
        """One gRPC call from first message to OK. Raises AioRpcError, or RearviewError for a bad server."""
        call = self._connect()
        writer: asyncio.Task[None] | None = None
        try:
            await self._begin(call)
            self._finish_sent = False
            self._to_write.set()
            writer = asyncio.create_task(_or_cancel(call, self._write_loop(call)))
            await self._read_loop(call)
        finally:
            call.cancel()
            if writer is not None:
                writer.cancel()
                with contextlib.suppress(asyncio.CancelledError):
                    await writer
        if not self._ledger.is_empty:
            raise Fault(Reason.INTERNAL, f"ended with {self._ledger.num_unanswered_frames} frames unanswered")
        if not self._finishing:
            raise StreamEnded(Reason.CLOSED, "the server has ended the stream")

    async def _begin(self, call: Call) -> None:
        """Open or resume the session on a new call."""
        try:
            async with asyncio.timeout(self._reconnect.open_timeout_s):
                await call.write(self._first_request())
                response = await call.read()
        except TimeoutError:
            raise Unreachable(Reason.REPLICA_LOST, f"{self._address} does not answer") from None
        if response is None or response.WhichOneof("message") != "opened":
            raise Fault(Reason.INTERNAL, f"{self._address} did not begin with `opened`")
        message = response.opened
        opened = wire.opened(message)
        if self._opened is None:
            self._ledger.frame_credit, self._ledger.settings = response.frame_credit, message.settings
        else:
            self._ledger.resume(message.received_frames, response.frame_credit)
            self._push(Notice(NoticeKind.RESUMED, 0.0, opened.continuity))
            opened = replace(opened, resume_token=opened.resume_token or self._opened.resume_token)
        self._opened = opened
        self._connections += 1
        self._begun_s = asyncio.get_running_loop().time()
        self._changed.set()

    def _first_request(self) -> pb.TranslateRequest:
        self._told = (self._ledger.received_answers, self._taken_answers)
        if self._opened is None:
            return wire.open_request(self._options, self._answer_credit)
        session_id, token = self._opened.session_id, self._opened.resume_token
        return wire.resume_request(session_id, token, self._ledger.received_answers, self._answer_credit)

    # -- ending

    def _end(self, error: RearviewError | None) -> None:
        if self._ended:
            return
        self._ended, self._error = True, error
        for sent in self._sending:
            if not sent.done():
                sent.set_exception(error or StreamEnded(Reason.CLOSED, "the session was left"))
        self._to_take.set()
        self._changed.set()

    async def _stop(self) -> None:
        if self._task is not None:
            self._task.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await self._task
        self._end(StreamEnded(Reason.CLOSED, "the session was left"))

    @staticmethod
    async def _wait(event: asyncio.Event, timeout_s: float | None = None) -> bool:
        """Wait until `event` is set, and clear it. False: it was not, in `timeout_s`."""
        try:
            async with asyncio.timeout(timeout_s):
                await event.wait()
        except TimeoutError:
            return False
        event.clear()
        return True


async def _or_cancel(call: Call, work: Awaitable[None]) -> None:
    """Run the writer; if it fails, end the call, so that the reader wakes."""
    try:
        await work
    except Exception:
        call.cancel()
        raise
