"""A client of stubs alone: credit, acknowledgements, and a session that goes on over lost connections.

It keeps what is not answered, and after a lost call says at the next address how many answers it has: the
service then says how many frames it has received, and the rest is sent again.
"""

from __future__ import annotations

import asyncio
import contextlib
import random
import time
from collections import deque
from collections.abc import AsyncIterator
from typing import Any, Self

import grpc
from google.protobuf import duration_pb2
from google.rpc import error_details_pb2
from grpc_status import rpc_status
from rearview.contract.settings import Settings
from rearview.contract.stream import Continuity, DropPolicy, NoticeKind
from rearview.contract.watermark import settings_digest
from rearview.errors import DropReason
from rearview.v1 import session_service_pb2 as session_pb
from rearview.v1 import session_service_pb2_grpc, settings_pb2, translation_service_pb2_grpc
from rearview.v1 import translation_service_pb2 as pb

from loadtest.reliability.conversation import Over, Told, result_of
from loadtest.reliability.history import What
from loadtest.reliability.plan import StreamPlan

__all__ = ["RawConversation"]

RESUMABLE = {grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.CANCELLED, grpc.StatusCode.UNKNOWN}
GIVE_UP_S = 20.0
FIRST_WAIT_S, MAX_WAIT_S = 0.05, 0.5
ANSWER_S = 5.0
"""How long `open` or `resume` may be unanswered."""
ACKNOWLEDGE_EVERY = 8
BEAT_S = 1.0
POLICIES = {
    DropPolicy.LATEST: pb.DROP_POLICY_LATEST,
    DropPolicy.LOSSLESS: pb.DROP_POLICY_LOSSLESS,
    DropPolicy.DEADLINE: pb.DROP_POLICY_DEADLINE,
}


class RawConversation:
    """One session over stubs."""

    def __init__(self, plan: StreamPlan, addresses: tuple[str, ...]) -> None:
        """`addresses`: called in turn, from the first on."""
        self._plan, self._addresses = plan, addresses
        self._metadata = [] if plan.token is None else [("authorization", f"Bearer {plan.token}")]
        self._attempt = 0
        self._channel: Any = None
        self._call: Any = None
        self._opened = pb.Opened()
        self._unanswered: deque[pb.TranslateRequest] = deque()
        """Frames and controls that were sent, the frames among them without an answer."""
        self._answered = 0
        self._credit = 0
        self._sent = 0
        self._finished = False
        self._over: Over | None = None
        self._changed = asyncio.Event()
        self._wrote_s = 0.0
        self._writing = asyncio.Lock()

    async def __aenter__(self) -> Self:
        settings = settings_pb2.Settings(prompt="a", steps=self._plan.steps)
        request = pb.Open(
            settings=settings,
            width=64,
            height=64,
            drop_policy=POLICIES[self._plan.policy],
            frame_budget=duration_pb2.Duration(nanos=round(self._plan.budget_s * 1e9)),
            frame_rate=self._plan.rate,
            answer_format=pb.IMAGE_FORMAT_OPAQUE,
        )
        try:
            response = await self._begin(pb.TranslateRequest(open=request))
        except grpc.aio.AioRpcError as failure:
            await self._channel.close()
            raise _over(failure) from None
        self._opened, self._credit = response.opened, response.frame_credit
        return self

    async def __aexit__(self, *exception: object) -> None:
        if self._channel is None:
            return
        if self._call is not None:
            self._call.cancel()
        if self._over is None and not self._is_done:
            request = session_pb.CloseSessionRequest(session_id=self._opened.session_id)
            stub = session_service_pb2_grpc.SessionServiceStub(self._channel)
            with contextlib.suppress(grpc.aio.AioRpcError):
                await stub.CloseSession(request, metadata=self._metadata, timeout=2.0)
        await self._channel.close()

    @property
    def _is_done(self) -> bool:
        return self._finished and not any(item.HasField("frame") for item in self._unanswered)

    @property
    def opened(self) -> Told:
        settings = settings_digest(_settings(self._opened.settings))
        return Told(What.OPENED, data={"session": self._opened.session_id, "settings": settings})

    async def send(self, index: int, content: bytes) -> None:
        while self._sent >= self._credit or self._call is None:
            await self._wait()
        offset = duration_pb2.Duration(seconds=index // 30)
        frame = pb.Frame(
            frame_index=index, presentation_offset=offset, format=pb.IMAGE_FORMAT_OPAQUE, image=content
        )
        self._sent += 1
        await self._write(pb.TranslateRequest(frame=frame))

    async def control(self, seed: int) -> None:
        await self._write(
            pb.TranslateRequest(
                control=pb.Control(control_id=seed, settings=settings_pb2.Settings(seed=seed))
            )
        )

    async def finish(self) -> None:
        self._finished = True
        await self._half_close()

    async def vanish(self) -> None:
        """Cut the connection and never come back."""
        self._over = Over("CANCELLED", None, "vanished")
        await self._channel.close()
        self._channel = None

    async def answers(self) -> AsyncIterator[Told]:
        beat = asyncio.create_task(self._beat())
        try:
            while True:
                try:
                    response = await self._call.read()
                    if not isinstance(response, pb.TranslateResponse):
                        code = await self._call.code()
                        if code is grpc.StatusCode.OK:
                            return
                        raise await _failure(self._call)
                except grpc.aio.AioRpcError as failure:
                    async for told in self._resumed(failure):
                        yield told
                    continue
                self._credit = max(self._credit, response.frame_credit)
                self._wake()
                if (told := self._take(response)) is not None:
                    yield told
        except Over as over:
            self._over = over
            self._wake()
            raise
        finally:
            beat.cancel()

    # -- how

    def _wake(self) -> None:
        self._changed.set()
        self._changed = asyncio.Event()

    async def _wait(self) -> None:
        if self._over is not None:
            raise self._over
        await self._changed.wait()
        if self._over is not None:
            raise self._over

    async def _write(self, item: pb.TranslateRequest) -> None:
        if self._over is not None:
            raise self._over
        self._unanswered.append(item)
        await self._put(item)

    async def _put(self, message: pb.TranslateRequest) -> None:
        """Write, if there is a call: what is not answered is sent again over the next one."""
        async with self._writing:
            self._wrote_s = time.monotonic()
            if self._call is not None:
                with contextlib.suppress(grpc.aio.AioRpcError, asyncio.InvalidStateError):
                    await self._call.write(message)

    async def _half_close(self) -> None:
        async with self._writing:
            if self._call is not None:
                with contextlib.suppress(grpc.aio.AioRpcError, asyncio.InvalidStateError):
                    await self._call.done_writing()

    async def _beat(self) -> None:
        """Acknowledge, and say that the client lives."""
        while True:
            await asyncio.sleep(BEAT_S)
            if not self._finished and time.monotonic() - self._wrote_s >= BEAT_S:
                await self._put(_credit(self._answered))

    async def _begin(self, first: pb.TranslateRequest) -> pb.TranslateResponse:
        """Call the next address; returns `opened`. Raises AioRpcError."""
        address = self._addresses[self._attempt % len(self._addresses)]
        self._attempt += 1
        if self._channel is not None:
            await self._channel.close()
        self._channel = grpc.aio.insecure_channel(address, options=[("grpc.use_local_subchannel_pool", 1)])
        call = translation_service_pb2_grpc.TranslationServiceStub(self._channel).Translate(
            metadata=self._metadata
        )
        try:
            async with asyncio.timeout(ANSWER_S):
                await call.write(first)
                response = await call.read()
        except TimeoutError:
            call.cancel()
            raise _unanswered() from None
        except asyncio.InvalidStateError:
            raise await _failure(call) from None
        if not isinstance(response, pb.TranslateResponse):
            raise await _failure(call)
        self._call = call
        return response

    async def _resumed(self, failure: grpc.aio.AioRpcError) -> AsyncIterator[Told]:
        """Another call for the session. Raises Over."""
        self._call, wait_s, until_s = None, FIRST_WAIT_S, time.monotonic() + GIVE_UP_S
        if self._over is not None:
            raise self._over
        yield Told(What.CUT, data={"status": failure.code().name, "text": (failure.details() or "")[:100]})
        while True:
            if not _is_cut(failure) or time.monotonic() > until_s:
                raise _over(failure) from failure
            await asyncio.sleep(wait_s * random.uniform(0.5, 1.0))
            wait_s = min(2 * wait_s, MAX_WAIT_S)
            request = pb.Resume(
                session_id=self._opened.session_id,
                resume_token=self._opened.resume_token,
                received_answers=self._answered,
            )
            try:
                response = await self._begin(pb.TranslateRequest(resume=request))
                break
            except grpc.aio.AioRpcError as again:
                if again.code() is grpc.StatusCode.NOT_FOUND and self._is_done:
                    return  # Only the last word was lost.
                failure = again
        said = Continuity(pb.Continuity.Name(response.opened.continuity).removeprefix("CONTINUITY_").lower())
        yield Told(What.NOTICE, data={"kind": NoticeKind.RESUMED.value, "continuity": said.value})
        self._credit = max(self._credit, response.frame_credit)
        async for told in self._send_again(response.opened.received_frames):
            yield told
        self._wake()

    async def _send_again(self, received: int) -> AsyncIterator[Told]:
        """What the service has not received. Frames that it has are the first ones."""
        first = self._answered
        for item in tuple(self._unanswered):
            if item.HasField("frame"):
                first += 1
            if first > received or (item.HasField("control") and first >= received):
                await self._put(item)
        if self._finished:
            await self._half_close()
        return
        yield

    def _take(self, response: pb.TranslateResponse) -> Told | None:
        match response.WhichOneof("message"):
            case "frame":
                self._settle(response.frame.frame_index)
                return Told(What.RESULT, response.frame.frame_index, result_of(response.frame.image))
            case "dropped":
                self._settle(response.dropped.frame_index)
                reason = DropReason(response.dropped.reason).name
                return Told(What.DROPPED, response.dropped.frame_index, {"reason": reason})
            case "control_applied":
                applied = response.control_applied
                self._forget_control(applied.control_id)
                digest = settings_digest(_settings(applied.settings))
                return Told(What.APPLIED, applied.received_frames, {"settings": digest})
            case "notice":
                kind = NoticeKind(pb.Notice.Kind.Name(response.notice.kind).removeprefix("KIND_").lower())
                if kind is NoticeKind.CREDIT:
                    return None
                said = pb.Continuity.Name(response.notice.continuity).removeprefix("CONTINUITY_").lower()
                known = None if said == "unspecified" else said
                return Told(What.NOTICE, data={"kind": kind.value, "continuity": known})
        return None

    def _settle(self, index: int) -> None:
        self._answered += 1
        for item in self._unanswered:
            if item.HasField("frame") and item.frame.frame_index == index:
                self._unanswered.remove(item)
                break
        if self._answered % ACKNOWLEDGE_EVERY == 0 and not self._finished and self._call is not None:
            task = asyncio.ensure_future(self._put(_credit(self._answered)))
            task.add_done_callback(lambda done: done.exception())

    def _forget_control(self, control_id: int) -> None:
        for item in self._unanswered:
            if item.HasField("control") and item.control.control_id == control_id:
                self._unanswered.remove(item)
                return


def _credit(answered: int) -> pb.TranslateRequest:
    return pb.TranslateRequest(credit=pb.Credit(received_answers=answered))


def _settings(message: settings_pb2.Settings) -> Settings:
    """Those that the digest is made of."""
    return Settings(message.prompt, steps=message.steps, seed=message.seed)


async def _failure(call: Any) -> grpc.aio.AioRpcError:
    return grpc.aio.AioRpcError(
        await call.code(), grpc.aio.Metadata(), await call.trailing_metadata(), details=await call.details()
    )


def _unanswered() -> grpc.aio.AioRpcError:
    return grpc.aio.AioRpcError(
        grpc.StatusCode.UNAVAILABLE, grpc.aio.Metadata(), grpc.aio.Metadata(), details="no answer"
    )


GRPC_SAYS = ("Internal error from Core", "RST_STREAM")


def _is_cut(failure: grpc.aio.AioRpcError) -> bool:
    """Whether the connection is lost. INTERNAL in gRPC's own words is of a connection that broke."""
    text = failure.details() or ""
    is_its_own = failure.code() is grpc.StatusCode.INTERNAL and any(each in text for each in GRPC_SAYS)
    return failure.code() in RESUMABLE or is_its_own


def _over(failure: grpc.aio.AioRpcError) -> Over:
    reason = retry_after_s = None
    try:
        status = rpc_status.from_call(failure)
    except ValueError:
        status = None
    for detail in () if status is None else status.details:
        info, retry = error_details_pb2.ErrorInfo(), error_details_pb2.RetryInfo()
        if detail.Unpack(info):
            reason = info.reason
        elif detail.Unpack(retry):
            retry_after_s = retry.retry_delay.ToMilliseconds() / 1000
    return Over(failure.code().name, reason, failure.details() or "", retry_after_s)
