"""One Translate call: messages in, answers out, and how it ends.

A reader takes messages, a writer sends answers in order, a watchdog ends silence. The call ends OK only
after a half-close, when every frame has its answer; every other end has a status with a reason. A lost
connection ends nothing: the session stays for its grace time and can be resumed.
"""

from __future__ import annotations

import asyncio
import time
from collections import deque
from collections.abc import Callable
from typing import Any

import grpc

from rearview.config import TenantConfig
from rearview.contract.card import is_opaque
from rearview.contract.stream import ImageFormat, NoticeKind
from rearview.errors import DropReason, Fault, InvalidRequest, RearviewError, Reason, StreamEnded
from rearview.failpoints import reach
from rearview.ingress.bad_frames import BadFrames
from rearview.ingress.controls import take_control
from rearview.ingress.idle import Activity, idle_error, idle_in
from rearview.ingress.image_gate import check_frame
from rearview.ingress.intake import FrameIn
from rearview.ingress.messages import (
    answer_response,
    frame_in,
    frame_without_image,
    notice_response,
    open_request,
    opened_response,
    resized_response,
    resumption,
)
from rearview.ingress.service import Ingress
from rearview.ingress.sessions import Record
from rearview.ingress.throttle import Throttle
from rearview.ingress.tracing import caller_of
from rearview.ingress.voice import HEARTBEAT_S, Voice
from rearview.v1 import translation_service_pb2 as pb

__all__ = ["TranslateStream"]

FLUSH_S = 1.0
"""How long what is already answered may take to be sent when a stream ends with an error."""
CANCEL_SETTLE_S = 0.03
"""A lost connection first looks like a half-close; its cancellation follows within a few loop turns."""
MAX_OUTGOING = 16
"""Answers to controls that wait for a slow reader; beyond it nothing more is read from the client."""


class TranslateStream:
    """The state of one call."""

    def __init__(
        self,
        ingress: Ingress,
        context: grpc.aio.ServicerContext[Any, Any],
        tenant: TenantConfig,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._ingress, self._context, self._tenant = ingress, context, tenant
        self._clock, self._voice = clock, Voice(context, clock)
        self._limits = ingress.config.limits
        self._opaque = is_opaque(ingress.config.model.checkpoint)
        self._controls = frozenset(() if self._opaque else ingress.config.model.controls)
        self._throttle = Throttle(context, ingress.admission, tenant, clock)
        self._outgoing: deque[pb.TranslateResponse] = deque()
        """Answers to controls, and notices: not bound to the order of frames."""
        self._room = asyncio.Event()
        """Set while there is room in `_outgoing`."""
        self._room.set()
        self._answer_credit = 0
        self._number = 0
        """Number of the next answer to send."""
        self._half_closed = False
        self._ending = False
        """The stream ends with an error; the writer sends what is answered and stops."""
        self._activity = Activity.at(clock())
        self._ended: asyncio.Future[RearviewError] = asyncio.get_running_loop().create_future()
        self.opened = False
        """Whether a session was opened or resumed."""

    async def run(self) -> None:
        """Serve the call to its end. Raises RearviewError for every end but an orderly half-close."""
        record = await self._open_or_resume(await self._first_message())
        record.session.traces.caller = caller_of(self._context.invocation_metadata())
        self._ingress.sessions.attach(record, self)
        self.opened = True
        self._bad_frames = BadFrames(self._limits.max_bad_frames, record.session.received)
        self._throttle.frame_s = self._ingress.choosing.frame_s(record.session)
        self._activity = Activity.at(self._clock())  # An open may take longer than a stream may be silent.
        try:
            await self._exchange(record)
            await asyncio.sleep(CANCEL_SETTLE_S)
        except RearviewError as error:
            self._close(record, error)
            raise
        except (asyncio.CancelledError, grpc.aio.BaseError):  # The connection is lost.
            self._ingress.sessions.detach(record, self)
            raise
        except Exception:
            self._close(record, Fault())
            raise
        self._close(record, StreamEnded(Reason.CLOSED, "the stream has ended"))

    def end(self, error: RearviewError) -> None:
        """The session is over, or another stream feeds it now: the call ends with `error`."""
        if not self._ended.done():
            self._ended.set_result(error)

    def _close(self, record: Record, why: RearviewError) -> None:
        if record.stream is self:
            self._ingress.sessions.close(record, why)

    async def _first_message(self) -> pb.TranslateRequest:
        try:
            async with asyncio.timeout(self._ingress.config.ingress.open_timeout_s):
                message = await self._context.read()
        except TimeoutError:
            raise StreamEnded(Reason.IDLE, "no message came to open the stream") from None
        if not isinstance(message, pb.TranslateRequest):
            raise InvalidRequest(Reason.NOT_OPEN, "the stream ended before `open`")
        return message

    async def _open_or_resume(self, message: pb.TranslateRequest) -> Record:
        kind = message.WhichOneof("message")
        if kind == "open":
            request = open_request(message.open, opaque=self._opaque)
            record = await self._ingress.open(self._tenant, request)
            self._answer_credit = request.answer_credit
        elif kind == "resume":
            record = await self._resume(message.resume)
        elif kind is None:
            raise InvalidRequest(Reason.MESSAGE_EMPTY, "a request without a message")
        else:
            raise InvalidRequest(Reason.NOT_OPEN, "the first message must be `open` or `resume`")
        edge = self._ingress.config.ingress
        advice = self._ingress.advice(record.session)
        self._outgoing.append(
            opened_response(
                record.session,
                idle_timeout_s=edge.idle_timeout_s,
                resume_grace_s=edge.resume_grace_s,
                heartbeat_s=HEARTBEAT_S,
                advice=advice,
            )
        )
        return record

    async def _resume(self, message: pb.Resume) -> Record:
        record = await self._voice.soon(self._ingress.resume(self._tenant, resumption(message)))
        record.session.acknowledge(message.received_answers)
        record.session.book.answer(message.received_answers)  # Refuses a position that is no longer kept.
        self._number = message.received_answers
        self._answer_credit = message.answer_credit
        return record

    async def _exchange(self, record: Record) -> None:
        writer = asyncio.create_task(self._write(record))
        others = {
            asyncio.create_task(work)
            for work in (self._read(record), self._watch(record), self._wait_for_end())
        }
        try:
            while not writer.done():
                await asyncio.wait({writer, *others}, return_when=asyncio.FIRST_COMPLETED)
                for task in [task for task in others if task.done()]:
                    others.discard(task)
                    await self._finish(record, task, writer)
            writer.result()
            if self._ended.done():
                raise self._ended.result()
        finally:
            for task in (writer, *others):
                task.cancel()
            await asyncio.gather(writer, *others, return_exceptions=True)

    async def _finish(self, record: Record, task: asyncio.Task[None], writer: asyncio.Task[None]) -> None:
        """What a task beside the writer ended with; before an error, what is answered is sent."""
        error = task.exception()
        if error is None:
            return
        self._ending = True
        record.session.wake()
        await asyncio.wait({writer}, timeout=FLUSH_S)
        raise error

    async def _wait_for_end(self) -> None:
        raise await self._ended

    async def _read(self, record: Record) -> None:
        while True:
            await self._room.wait()
            message, now = await self._throttle.read(), self._clock()
            self._activity = self._activity.credit_at(now)
            if not isinstance(message, pb.TranslateRequest):
                self._half_closed = True
                record.session.wake()
                await asyncio.sleep(CANCEL_SETTLE_S)
                record.session.finish()
                return
            await self._take(record, message, now)

    async def _take(self, record: Record, message: pb.TranslateRequest, now: float) -> None:
        kind = message.WhichOneof("message")
        if kind != "credit":
            self._activity = Activity.at(now)
        if kind == "frame":
            self._take_frame(record, message.frame, now)
        elif kind == "control":
            self._throttle.took_control(now)
            await self._take_control(record, message.control)
        elif kind == "credit":
            record.session.acknowledge(message.credit.received_answers)
            self._answer_credit = max(self._answer_credit, message.credit.answer_credit)
            record.session.wake()
        elif kind is None:
            raise InvalidRequest(Reason.MESSAGE_EMPTY, "a request without a message")
        else:
            raise InvalidRequest(Reason.ALREADY_OPEN, "the stream is open already")

    def _take_frame(self, record: Record, message: pb.Frame, now: float) -> None:
        frame: FrameIn | None = None
        refusal: DropReason | None = DropReason.RATE_LIMITED
        if self._throttle.takes_frame(now):
            frame = frame_in(message, now)
            refusal = DropReason.IMAGE_INVALID if frame is None else self._refusal(record, frame)
        self._bad_frames.came(record.session.received, refusal)
        record.session.receive(frame or frame_without_image(message, now), refusal)

    def _refusal(self, record: Record, frame: FrameIn) -> DropReason | None:
        if (frame.format is ImageFormat.OPAQUE) != self._opaque:
            return DropReason.IMAGE_INVALID
        return check_frame(frame, *record.session.size, self._limits, self._controls)

    async def _take_control(self, record: Record, message: pb.Control) -> None:
        session = record.session
        self._outgoing.append(await take_control(self._ingress, session, message, self._bad_frames))
        self._throttle.frame_s = self._ingress.choosing.frame_s(session)
        if len(self._outgoing) >= MAX_OUTGOING:
            self._room.clear()
        session.wake()

    async def _write(self, record: Record) -> None:
        session, noticed = record.session, False
        while True:
            while self._outgoing:
                await self._send(self._outgoing.popleft())
                self._room.set()
            if self._ingress.draining and not noticed:
                noticed = True
                grace_s = self._ingress.config.ingress.drain_grace_s
                self._outgoing.append(notice_response(session, NoticeKind.DRAIN, grace_s))
                continue
            if session.past.moved and record.stream is self:
                self._outgoing.append(
                    notice_response(session, NoticeKind.MOVED, 0.0, session.past.told_moved())
                )
                continue
            answer = session.book.answer(self._number) if self._may_send(record) else None
            if answer is not None:
                if answer.gap_frames is not None:
                    await self._send(resized_response(session, answer.gap_frames))
                await self._send(answer_response(session, answer))
                self._number += 1
                session.sent(self._number)
                self._bad_frames.answered(answer.receipt.place, answer.outcome)
                continue
            if self._half_closed and not session.book.owes and self._number == session.book.released:
                return
            if self._ending:
                return
            warms_up = session.intake.warm_up_missing > 0
            if warms_up and session.frame_credit > self._voice.told_credit <= session.received:
                self._outgoing.append(notice_response(session, NoticeKind.CREDIT, 0.0))
                continue
            if not await self._voice.listens(session.wait_for_change()):
                await self._voice.say(notice_response(session, NoticeKind.CREDIT, 0.0))

    async def _send(self, response: pb.TranslateResponse) -> None:
        reach("ingress.answer.before")
        await self._voice.say(response)
        reach("ingress.answer.after")
        self._activity = Activity.at(self._clock())

    def _may_send(self, record: Record) -> bool:
        if record.stream is not self:
            return False
        # After a half-close the client can grant no more credit; it is then taken to read to the end.
        return self._half_closed or not self._answer_credit or self._number < self._answer_credit

    async def _watch(self, record: Record) -> None:
        """End a silent stream."""
        idle_s, session = self._ingress.config.ingress.idle_timeout_s, record.session
        while True:
            owes, starves = session.book.owes, session.starves
            left_s = idle_in(self._activity, self._clock(), idle_s, owes=owes, starves=starves)
            if left_s <= 0:
                raise idle_error(idle_s, session.intake.warm_up_missing if owes else 0)
            await asyncio.sleep(left_s)
