"""A real grpc.aio server on port 0 that speaks all of `rearview.v1`; its engine inverts the picture.

    async with FakeServer(Faults(cut_after_answers=[5])) as server:
        Client(server.address)

`Faults` makes it misbehave; `FakeServer.log` records what clients did. It checks the client as the
service does: credit, order of messages, tokens.
"""

from __future__ import annotations

import asyncio
import contextlib
import secrets
import threading
from collections.abc import AsyncIterator, Iterator
from dataclasses import dataclass, field
from typing import Any, Self

import grpc
from google.protobuf import any_pb2
from google.rpc import code_pb2, error_details_pb2, status_pb2
from grpc_status import rpc_status
from rearview.errors import DOMAIN, STATUS_OF_REASON, DropReason, Reason
from rearview.v1 import model_service_pb2 as model_pb
from rearview.v1 import session_service_pb2 as session_pb
from rearview.v1 import settings_pb2
from rearview.v1 import translation_service_pb2 as pb
from rearview.v1 import translation_service_pb2_grpc as pb_grpc
from rearview.v1.error_reason_pb2 import DropReason as DropReasonPb
from rearview.v1.error_reason_pb2 import ErrorReason
from rearview.v1.model_service_pb2_grpc import ModelServiceServicer, add_ModelServiceServicer_to_server
from rearview.v1.session_service_pb2_grpc import SessionServiceServicer, add_SessionServiceServicer_to_server

from support.fake_answers import changed, duration, first_settings, invert, refusal, timings, unusable

__all__ = ["FakeServer", "Faults", "Log", "serving_in_thread"]

HALF_CLOSE_WAIT_S = 0.02
SIZE = 64
"""Default width and height of a session, pixels."""


@dataclass
class Faults:
    """How the server departs from a willing one. Everything off by default."""

    window: int = 4
    """Frames that a client may have unanswered."""
    depth: int = 0
    """So many answers are held back until later frames come, or the half-close."""
    drop: dict[int, DropReason] = field(default_factory=dict)
    """frame_index -> reason."""
    cut_after_answers: list[int] = field(default_factory=list)
    """The connection is lost after so many answers in all, once for each number."""
    cut_code: grpc.StatusCode = grpc.StatusCode.UNAVAILABLE
    forget_on_cut: bool = False
    """The session is gone after a cut."""
    unreceived_on_cut: int = 0
    """So many received but unanswered frames are lost in a cut."""
    refuse: list[tuple[Reason, float | None]] = field(default_factory=list)
    """Each opening takes the first: refused with this reason and retry time."""
    refuse_resume: list[tuple[Reason, float | None]] = field(default_factory=list)
    end_after_answers: tuple[int, Reason] | None = None
    """The stream is ended for this reason after so many answers."""
    withhold_credit: bool = False
    """No credit beyond the first window is given until `FakeServer.release_credit`."""
    wrong_index: bool = False
    """Answers carry an index that was never sent."""
    ignore_answer_credit: bool = False
    describes_no_model: bool = False
    """It is of a release before `ModelService`."""
    token: str | None = None
    """Bearer token that clients must have."""
    idle_timeout_s: float = 10.0
    resume_grace_s: float = 5.0


@dataclass
class Log:
    """What clients did."""

    received: list[int] = field(default_factory=list)
    """frame_index of every frame that came, also when it came again."""
    received_under: dict[int, settings_pb2.Settings] = field(default_factory=dict)
    """frame_index -> the session's settings when it came last."""
    shown: dict[int, dict[str, bytes]] = field(default_factory=dict)
    """frame_index -> by name of the control, what came for it."""
    max_unanswered: int = 0
    """The most frames that were received and not answered at a time."""
    max_unread_answers: int = 0
    """The most answers that were sent beyond what the client had acknowledged."""
    num_opens: int = 0
    num_resumes: int = 0
    num_credits: int = 0
    closed: list[str] = field(default_factory=list)
    finished: list[str] = field(default_factory=list)


@dataclass
class _Session:
    session_id: str
    token: str
    open: pb.Open
    settings: settings_pb2.Settings
    received: int = 0
    held: list[pb.Frame] = field(default_factory=list)
    entries: list[pb.TranslateResponse] = field(default_factory=list)
    """Every answer and control_applied so far, in order."""
    acknowledged: int = 0
    changed: asyncio.Event = field(default_factory=asyncio.Event)


class _Ended(Exception):
    def __init__(self, reason: Reason, message: str, retry_after_s: float | None = None) -> None:
        super().__init__(message)
        self.reason, self.message, self.retry_after_s = reason, message, retry_after_s


class FakeServer(pb_grpc.TranslationServiceServicer, SessionServiceServicer, ModelServiceServicer):
    """Sessions live in this object and survive `stop` and `start`."""

    def __init__(self, faults: Faults | None = None) -> None:
        self.faults = faults or Faults()
        self.log = Log()
        self.sessions: dict[str, _Session] = {}
        self._credit_released = not self.faults.withhold_credit
        self._port = 0
        self._server: grpc.aio.Server | None = None

    async def __aenter__(self) -> Self:
        await self.start()
        return self

    async def __aexit__(self, *error: object) -> None:
        await self.stop()

    @property
    def address(self) -> str:
        return f"127.0.0.1:{self._port}"

    async def start(self) -> None:
        """Listen; on the same port as before, if there was one."""
        self._server = grpc.aio.server(options=[("grpc.max_receive_message_length", 8 << 20)])
        pb_grpc.add_TranslationServiceServicer_to_server(self, self._server)
        add_SessionServiceServicer_to_server(self, self._server)
        if not self.faults.describes_no_model:
            add_ModelServiceServicer_to_server(self, self._server)
        self._port = self._server.add_insecure_port(f"127.0.0.1:{self._port}")
        await self._server.start()

    async def stop(self) -> None:
        """Cut every connection at once."""
        if self._server is not None:
            await self._server.stop(None)
        self._server = None

    def release_credit(self) -> None:
        self._credit_released = True
        for session in self.sessions.values():
            session.changed.set()

    # -- ModelService

    async def DescribeModel(self, request: model_pb.DescribeModelRequest, context: Any) -> Any:  # noqa: N802
        model = model_pb.Model(
            width=SIZE, height=SIZE, side_multiple=8, motion_side_multiple=32, min_side=64, max_pixels=1 << 20
        )
        return model_pb.DescribeModelResponse(model=model)

    # -- TranslationService

    async def Translate(  # noqa: N802
        self, request_iterator: AsyncIterator[pb.TranslateRequest], context: Any
    ) -> AsyncIterator[pb.TranslateResponse]:
        try:
            self._authenticate(context)
            session, sent, credit = self._begin(await anext(request_iterator, pb.TranslateRequest()))
            stream = _Stream(self, session, sent, credit)
            async for response in stream.serve(request_iterator):
                yield response
        except _Ended as end:
            await context.abort_with_status(_status(end))
        except _Cut as cut:
            await context.abort(cut.args[0], "connection reset")

    def _begin(self, first: pb.TranslateRequest) -> tuple[_Session, int, int]:
        match first.WhichOneof("message"):
            case "open":
                return self._open(first.open), 0, first.open.answer_credit
            case "resume":
                session = self._resume(first.resume)
                return session, first.resume.received_answers, first.resume.answer_credit
            case None:
                raise _Ended(Reason.MESSAGE_EMPTY, "the first message is empty")
            case _:
                raise _Ended(Reason.NOT_OPEN, "the first message must be `open` or `resume`")

    def _open(self, request: pb.Open) -> _Session:
        self.log.num_opens += 1
        if self.faults.refuse:
            reason, retry_after_s = self.faults.refuse.pop(0)
            raise _Ended(reason, "refused", retry_after_s)
        if (refused := refusal(request.settings)) is not None:
            raise _Ended(refused, "no such settings")
        settings = changed(first_settings(request.jpeg_quality), request.settings)
        session = _Session(secrets.token_hex(8), secrets.token_hex(8), request, settings)
        request.width, request.height = request.width or SIZE, request.height or SIZE
        self.sessions[session.session_id] = session
        return session

    def _resume(self, request: pb.Resume) -> _Session:
        self.log.num_resumes += 1
        if self.faults.refuse_resume:
            reason, retry_after_s = self.faults.refuse_resume.pop(0)
            raise _Ended(reason, "refused", retry_after_s)
        session = self.sessions.get(request.session_id)
        if session is None:
            raise _Ended(Reason.SESSION_UNKNOWN, "no such session")
        if request.resume_token != session.token:
            raise _Ended(Reason.RESUME_TOKEN_INVALID, "wrong resume token")
        session.acknowledged = request.received_answers
        return session

    def _authenticate(self, context: Any) -> None:
        sent = dict(context.invocation_metadata()).get("authorization")
        if self.faults.token is not None and sent != f"Bearer {self.faults.token}":
            raise _Ended(Reason.TOKEN_INVALID, "no tenant owns this token")

    def frame_credit(self, answered: int) -> int:
        return self.faults.window + (answered if self._credit_released else 0)

    # -- SessionService

    async def GetSession(self, request: session_pb.GetSessionRequest, context: Any) -> Any:  # noqa: N802
        session = await self._find(request.session_id, context)
        return session_pb.GetSessionResponse(session=_described(session))

    async def ListSessions(self, request: session_pb.ListSessionsRequest, context: Any) -> Any:  # noqa: N802
        start, found = int(request.page_token or 0), list(self.sessions.values())
        page = found[start : start + min(request.page_size, 2)]
        more = str(start + len(page)) if start + len(page) < len(found) else ""
        return session_pb.ListSessionsResponse(sessions=map(_described, page), next_page_token=more)

    async def CloseSession(self, request: session_pb.CloseSessionRequest, context: Any) -> Any:  # noqa: N802
        session = await self._find(request.session_id, context)
        del self.sessions[session.session_id]
        self.log.closed.append(session.session_id)
        session.changed.set()
        return session_pb.CloseSessionResponse()

    async def _find(self, session_id: str, context: Any) -> _Session:
        try:
            self._authenticate(context)
            if session_id not in self.sessions:
                raise _Ended(Reason.SESSION_UNKNOWN, "no such session")
        except _Ended as end:
            await context.abort_with_status(_status(end))
        return self.sessions[session_id]


@contextlib.contextmanager
def serving_in_thread(faults: Faults | None = None) -> Iterator[FakeServer]:
    """A fake server on a loop of its own, for clients that block."""
    loop, server = asyncio.new_event_loop(), FakeServer(faults)
    thread = threading.Thread(target=loop.run_forever, name="fake-server")
    thread.start()
    try:
        asyncio.run_coroutine_threadsafe(server.start(), loop).result(5)
        yield server
    finally:
        asyncio.run_coroutine_threadsafe(server.stop(), loop).result(5)
        loop.call_soon_threadsafe(loop.stop)
        thread.join(5)
        loop.close()


class _Cut(Exception):
    """The connection is lost."""


class _Stream:
    """One call: a task takes requests, `serve` yields responses."""

    def __init__(self, server: FakeServer, session: _Session, sent: int, credit: int) -> None:
        self._server, self._faults, self._log = server, server.faults, server.log
        self._session, self._sent, self._credit = session, sent, credit
        self._position = _position_after(session.entries, sent)
        self._told_credit = 0
        self._half_closed = False
        self._end: _Ended | None = None

    async def serve(
        self, requests: AsyncIterator[pb.TranslateRequest]
    ) -> AsyncIterator[pb.TranslateResponse]:
        session, changed = self._session, self._session.changed
        yield self._with_credit(pb.TranslateResponse(opened=self._opened()))
        reader = asyncio.create_task(self._take(requests))
        try:
            while True:
                changed.clear()
                async for response in self._ready():
                    yield response
                self._raise_if_over()
                if self._half_closed and self._position == len(session.entries):
                    self._server.sessions.pop(session.session_id, None)
                    self._log.finished.append(session.session_id)
                    return
                if self._server.frame_credit(self._sent) > self._told_credit:
                    yield self._with_credit(pb.TranslateResponse())
                await changed.wait()
        finally:
            reader.cancel()
            await asyncio.gather(reader, return_exceptions=True)

    async def _take(self, requests: AsyncIterator[pb.TranslateRequest]) -> None:
        try:
            async for request in requests:
                self._handle(request)
                self._session.changed.set()
            # A lost connection looks like a half-close until the call is cancelled, a little later.
            await asyncio.sleep(HALF_CLOSE_WAIT_S)
            self._release(0)
            self._half_closed = True
        except _Ended as end:
            self._end = end
        self._session.changed.set()

    def _handle(self, request: pb.TranslateRequest) -> None:
        match request.WhichOneof("message"):
            case "frame":
                self._frame(request.frame)
            case "control":
                self._control(request.control)
            case "credit":
                self._log.num_credits += 1
                self._credit = max(self._credit, request.credit.answer_credit)
                self._session.acknowledged = request.credit.received_answers
            case None:
                raise _Ended(Reason.MESSAGE_EMPTY, "an empty message")
            case _:
                raise _Ended(Reason.ALREADY_OPEN, "opened twice")

    def _frame(self, frame: pb.Frame) -> None:
        session = self._session
        if session.received >= self._told_credit:
            raise _Ended(Reason.CREDIT_EXCEEDED, "more frames than credit")
        session.received += 1
        session.held.append(frame)
        self._log.received.append(frame.frame_index)
        self._log.received_under[frame.frame_index] = session.settings
        self._log.shown[frame.frame_index] = {one.name: one.image for one in frame.controls}
        self._log.max_unanswered = max(self._log.max_unanswered, session.received - self._sent)
        self._release(self._faults.depth)

    def _control(self, control: pb.Control) -> None:
        session = self._session
        applied = pb.ControlApplied(control_id=control.control_id, received_frames=session.received)
        if (refused := refusal(control.settings)) is not None:
            applied.rejected_reason = ErrorReason.ValueType(refused.value)
        else:
            self._release(0)  # frames before it are done under the former prompt
            session.settings = changed(session.settings, control.settings)
        applied.settings.CopyFrom(session.settings)
        session.entries.append(pb.TranslateResponse(control_applied=applied))

    def _release(self, keep: int) -> None:
        held = self._session.held
        while len(held) > keep:
            self._session.entries.append(self._answer(held.pop(0)))

    def _answer(self, frame: pb.Frame) -> pb.TranslateResponse:
        index = frame.frame_index + (1000 if self._faults.wrong_index else 0)
        reason = self._faults.drop.get(frame.frame_index) or unusable(frame, self._session.open)
        if reason is not None:
            dropped = pb.Dropped(frame_index=index, timings=timings())
            dropped.reason = DropReasonPb.ValueType(reason.value)
            return pb.TranslateResponse(dropped=dropped)
        image = invert(frame, self._session.open, self._session.settings.jpeg_quality)
        answer = pb.TranslatedFrame(frame_index=index, image=image, timings=timings())
        answer.presentation_offset.CopyFrom(frame.presentation_offset)
        answer.format = self._session.open.answer_format or pb.IMAGE_FORMAT_JPEG
        return pb.TranslateResponse(frame=answer)

    async def _ready(self) -> AsyncIterator[pb.TranslateResponse]:
        entries, faults = self._session.entries, self._faults
        while self._position < len(entries):
            entry = entries[self._position]
            is_answer = entry.WhichOneof("message") != "control_applied"
            if is_answer and self._credit and self._sent >= self._credit and not faults.ignore_answer_credit:
                return
            self._position += 1
            self._sent += is_answer
            unread = self._sent - self._session.acknowledged
            self._log.max_unread_answers = max(self._log.max_unread_answers, unread)
            yield self._with_credit(entry)
            if is_answer:
                self._cut_if_due()

    def _cut_if_due(self) -> None:
        faults, session = self._faults, self._session
        if faults.end_after_answers is not None and self._sent >= faults.end_after_answers[0]:
            raise _Ended(faults.end_after_answers[1], "ended by the server")
        if self._sent not in faults.cut_after_answers:
            return
        faults.cut_after_answers.remove(self._sent)
        if faults.forget_on_cut:
            del self._server.sessions[session.session_id]
        self._forget(min(faults.unreceived_on_cut, session.received - self._sent))
        raise _Cut(faults.cut_code)

    def _forget(self, num_frames: int) -> None:
        """Lose the last frames, whether held or already in `entries`, and controls after them."""
        session = self._session
        for _ in range(num_frames):
            if session.held:
                session.held.pop()
                continue
            while session.entries.pop().WhichOneof("message") == "control_applied":
                pass
        session.received -= num_frames

    def _raise_if_over(self) -> None:
        if self._end is not None:
            raise self._end
        if self._session.session_id not in self._server.sessions:
            raise _Ended(Reason.CLOSED, "closed by CloseSession")

    def _with_credit(self, response: pb.TranslateResponse) -> pb.TranslateResponse:
        self._told_credit = max(self._told_credit, self._server.frame_credit(self._sent))
        copy = pb.TranslateResponse()
        copy.CopyFrom(response)
        copy.frame_credit = self._told_credit
        return copy

    def _opened(self) -> pb.Opened:
        session = self._session
        return pb.Opened(
            session_id=session.session_id,
            resume_token=session.token,
            model="fake",
            width=session.open.width,
            height=session.open.height,
            settings=session.settings,
            idle_timeout=duration(self._faults.idle_timeout_s),
            resume_grace=duration(self._faults.resume_grace_s),
            continuity=pb.CONTINUITY_EXACT,
            method=session.open.method or pb.METHOD_PER_FRAME,
            received_frames=session.received,
        )


def _position_after(entries: list[pb.TranslateResponse], answers: int) -> int:
    """Where the entries after the first `answers` frames and drops begin."""
    for position, entry in enumerate(entries):
        if answers == 0:
            return position
        answers -= entry.WhichOneof("message") != "control_applied"
    return len(entries)


def _described(session: _Session) -> session_pb.Session:
    described = session_pb.Session(
        session_id=session.session_id,
        tenant="local",
        state=session_pb.Session.STATE_STREAMING,
        model="fake",
        width=session.open.width,
        height=session.open.height,
        received_frames=session.received,
        lane=["fused#0"],
        epoch=1,
    )
    described.open_time.GetCurrentTime()
    return described


def _status(end: _Ended) -> Any:
    info = error_details_pb2.ErrorInfo(reason=f"ERROR_REASON_{end.reason.name}", domain=DOMAIN)
    details = [any_pb2.Any(), *([any_pb2.Any()] if end.retry_after_s is not None else [])]
    details[0].Pack(info)
    if end.retry_after_s is not None:
        details[1].Pack(error_details_pb2.RetryInfo(retry_delay=duration(end.retry_after_s)))
    code = code_pb2.Code.Value(STATUS_OF_REASON[end.reason])
    return rpc_status.to_status(status_pb2.Status(code=code, message=end.message, details=details))
