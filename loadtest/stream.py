"""One stream of load: opens, sends on schedule, reads everything, tells the ledger.

It speaks the protocol with the raw stubs rather than through the client library, because a good client
slows down, retries and hides what a load generator must see. Only the feeding task writes to the call:
gRPC takes one write at a time.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field

import grpc
from google.protobuf.duration_pb2 import Duration
from google.rpc import error_details_pb2
from grpc_status import rpc_status
from rearview.contract.stream import DropPolicy
from rearview.schema.enums import DROP_POLICIES
from rearview.v1 import error_reason_pb2, settings_pb2, translation_service_pb2_grpc
from rearview.v1 import translation_service_pb2 as pb

from loadtest.histograms import Histograms
from loadtest.ledger import Answer, StreamLedger, StreamResult, Unsent
from loadtest.payloads import Payloads
from loadtest.plan import ClosedLoop, LoadPlan, OpenLoop

__all__ = ["LoadStream"]

CHANNEL_OPTIONS = (
    # A connection per stream, as separate users have; else all streams of a process share one.
    ("grpc.use_local_subchannel_pool", 1),
    ("grpc.max_receive_message_length", 8 << 20),
    ("grpc.enable_http_proxy", 0),
)
CLOSED_LOOP_FPS = 30.0
"""Presentation times of a closed loop count as if it sent so many frames per second."""


@dataclass
class LoadStream:
    """One call of `Translate`. Use once: `open`, then `feed`."""

    plan: LoadPlan
    payloads: Payloads
    stream: int
    histograms: Histograms
    _wake: asyncio.Event = field(default_factory=asyncio.Event)
    _over: bool = False
    _status: str = "OK"
    _acknowledged: int = 0
    _held_until_s: float = float("-inf")
    _stalled: bool = False

    def __post_init__(self) -> None:
        pace, warmup = self.plan.pace, self.plan.warmup_frames
        measured_s = (pace.frames - warmup) / pace.fps if isinstance(pace, OpenLoop) else 0.0
        self._ledger = StreamLedger(
            self.stream,
            pace.frames,
            self.histograms,
            warmup_frames=warmup,
            scheduled_s=max(0.0, measured_s),
        )
        self._channel = grpc.aio.insecure_channel(self.plan.target, options=CHANNEL_OPTIONS)
        token = self.plan.token
        metadata = (("authorization", f"Bearer {token}"),) if token else None
        self._call = translation_service_pb2_grpc.TranslationServiceStub(self._channel).Translate(
            metadata=metadata
        )
        self._receiver: asyncio.Task[None] | None = None

    async def open(self) -> None:
        """Open the session; returns when it is open, refused or late. Never raises for the server's doing."""
        asked_s = time.monotonic()
        opened = asyncio.Event()
        self._receiver = asyncio.create_task(self._receive(asked_s, opened.set))
        with suppress(grpc.aio.AioRpcError, asyncio.InvalidStateError):
            await self._call.write(self._open_request())
        with suppress(TimeoutError):
            await asyncio.wait_for(opened.wait(), self.plan.open_timeout_s)

    async def feed(self, start_s: float) -> StreamResult:
        """Send every frame, half-close, wait for the end. `start_s`: when the first frame is due."""
        assert self._receiver is not None, "feed before open"
        try:
            with suppress(grpc.aio.AioRpcError, asyncio.InvalidStateError):
                await self._send_all(start_s)
                await self._call.done_writing()
            timed_out = not await self._wait_for_end(self._receiver)
            return self._ledger.ended(self._status, timed_out=timed_out)
        finally:
            await self._channel.close()

    async def _wait_for_end(self, receiver: asyncio.Task[None]) -> bool:
        done, _ = await asyncio.wait([receiver], timeout=self.plan.drain_timeout_s)
        if not done:
            self._call.cancel()
            await receiver
            self._status = "NO_END"
        receiver.result()  # A fault of the generator's own must not look like one of the server.
        return bool(done)

    async def _send_all(self, start_s: float) -> None:
        pace = self.plan.pace
        for index in range(pace.frames):
            if isinstance(pace, OpenLoop):
                due_s = start_s + pace.due_offset_s(index)
                await self._send_on_schedule(index, due_s)
            else:
                await self._send_in_turn(index, pace)

    async def _send_on_schedule(self, index: int, due_s: float) -> None:
        if not self._over and (wait_s := due_s - time.monotonic()) > 0:
            await asyncio.sleep(wait_s)
        if self._over:
            return self._ledger.unsent(index, due_s, Unsent.STREAM_ENDED)
        waited = not self._ledger.has_credit
        if waited and (why := await self._wait_for_credit(due_s)) is not None:
            return self._ledger.unsent(index, due_s, why)
        now = time.monotonic()
        if waited:
            self._held_until_s = now
        await self._send(index, due_s, now, held=due_s <= self._held_until_s)
        return None

    async def _wait_for_credit(self, due_s: float) -> Unsent | None:
        """None: there is credit now. Else why the frame is not sent."""
        if self.plan.policy is DropPolicy.LATEST or self._stalled:
            return Unsent.NO_CREDIT
        deadline = self.plan.policy is DropPolicy.DEADLINE
        limit_s = due_s + self.plan.frame_budget_s if deadline else self._patience_s()
        if await self._until(lambda: self._ledger.has_credit, limit_s):
            return None
        if self._over:
            return Unsent.STREAM_ENDED
        # A lossless stream that got no credit for so long will get none: do not wait again per frame.
        self._stalled = not deadline
        return Unsent.EXPIRED if deadline else Unsent.NO_CREDIT

    async def _send_in_turn(self, index: int, pace: ClosedLoop) -> None:
        def has_turn() -> bool:
            return self._ledger.has_credit and self._ledger.unanswered < pace.in_flight

        if not self._stalled and await self._until(has_turn, self._patience_s()):
            now = time.monotonic()
            await self._send(index, now, now, held=False)
            return
        self._stalled = True
        self._ledger.unsent(index, time.monotonic(), Unsent.STREAM_ENDED if self._over else Unsent.NO_CREDIT)

    def _patience_s(self) -> float:
        return time.monotonic() + self.plan.drain_timeout_s

    async def _until(self, condition: Callable[[], bool], limit_s: float) -> bool:
        """Wait for the condition, which only an answer can change. False: stream over or too late."""
        while not self._over:
            if condition():
                return True
            self._wake.clear()
            try:
                await asyncio.wait_for(self._wake.wait(), limit_s - time.monotonic())
            except TimeoutError:
                return condition()
        return False

    async def _send(self, index: int, due_s: float, now: float, *, held: bool) -> None:
        frame = pb.Frame(
            frame_index=index,
            presentation_offset=self._offset(index),
            format=self.payloads.format,
            image=self.payloads.image(self.stream, index),
        )
        self._ledger.sent(index, due_s, now, held=held)
        await self._call.write(pb.TranslateRequest(frame=frame))
        answered = self._ledger.answered_total
        if answered - self._acknowledged >= self.plan.ack_every:
            self._acknowledged = answered
            await self._call.write(pb.TranslateRequest(credit=pb.Credit(received_answers=answered)))

    async def _receive(self, asked_s: float, opened: Callable[[], None]) -> None:
        """Read until the stream ends. Its own task, so that nothing that the sender does delays a reading."""
        try:
            while (response := await self._call.read()) is not grpc.aio.EOF:
                assert isinstance(response, pb.TranslateResponse)
                self._take(response, asked_s, time.monotonic())
                opened()
                self._wake.set()
        except grpc.aio.AioRpcError as error:
            self._status = _status_text(error)
        except asyncio.CancelledError:
            self._status = "CANCELLED"
        finally:
            self._over = True
            opened()
            self._wake.set()

    def _take(self, response: pb.TranslateResponse, asked_s: float, now: float) -> None:
        kind = response.WhichOneof("message")
        if kind == "opened":
            self._ledger.opened(now - asked_s)
        self._ledger.granted(response.frame_credit)
        if kind == "frame":
            self._ledger.answered(self._picture(response.frame), now)
        elif kind == "dropped":
            dropped = response.dropped
            self._ledger.answered(Answer(dropped.frame_index, drop_reason=_drop_reason(dropped.reason)), now)

    def _picture(self, frame: pb.TranslatedFrame) -> Answer:
        return Answer(
            frame.frame_index,
            image_ok=self.payloads.matches(self.stream, frame.frame_index, frame.image),
            time_ok=frame.presentation_offset == self._offset(frame.frame_index),
            timings_s=_timings_s(frame.timings),
        )

    def _offset(self, index: int) -> Duration:
        pace = self.plan.pace
        fps = pace.fps if isinstance(pace, OpenLoop) else CLOSED_LOOP_FPS
        seconds, nanos = divmod(round(index * 1e9 / fps), 10**9)
        return Duration(seconds=seconds, nanos=nanos)

    def _open_request(self) -> pb.TranslateRequest:
        plan = self.plan
        settings = settings_pb2.Settings(prompt=plan.prompt, strength=plan.strength, steps=plan.steps)
        budget = Duration()
        budget.FromMicroseconds(round(plan.frame_budget_s * 1e6))
        return pb.TranslateRequest(
            open=pb.Open(
                width=plan.width,
                height=plan.height,
                settings=settings,
                drop_policy=DROP_POLICIES.number(plan.policy),
                frame_budget=budget if plan.policy is DropPolicy.DEADLINE else None,
                frame_rate=plan.pace.fps if isinstance(plan.pace, OpenLoop) else 0.0,
                answer_format=self.payloads.format,
                jpeg_quality=plan.jpeg_quality,
            )
        )


def _drop_reason(number: int) -> str:
    value = error_reason_pb2.DropReason.DESCRIPTOR.values_by_number.get(number)
    return f"unknown_{number}" if value is None else value.name.removeprefix("DROP_REASON_").lower()


def _timings_s(timings: pb.Timings) -> dict[str, float]:
    seconds = {
        "total": _seconds(timings.total),
        "admission": _seconds(timings.admission),
        "codec": _seconds(timings.codec),
    }
    for span in timings.spans:
        seconds[f"{span.span}/queue"] = _seconds(span.queue)
        seconds[f"{span.span}/compute"] = _seconds(span.compute)
    return seconds


def _seconds(duration: Duration) -> float:
    return duration.seconds + duration.nanos / 1e9


def _status_text(error: grpc.aio.AioRpcError) -> str:
    """The code's name, with the ErrorInfo reason after a slash if there is one."""
    name: str = error.code().name
    try:
        status = rpc_status.from_call(error)
    except ValueError:  # Its details contradict it: the code alone counts.
        return name
    for detail in status.details if status is not None else ():
        info = error_details_pb2.ErrorInfo()
        if detail.Unpack(info):
            return f"{name}/{info.reason.removeprefix('ERROR_REASON_')}"
    return name
