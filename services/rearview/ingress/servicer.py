"""The gRPC services: authenticate, call, and turn every error into a status with details."""

from __future__ import annotations

import logging
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any, TypeVar

import grpc

from rearview.config import TenantConfig
from rearview.contract.events import OpenRefused, StreamClosed, StreamOpened
from rearview.errors import Fault, InvalidRequest, RearviewError, Reason, StreamEnded
from rearview.ingress.messages import session_message
from rearview.ingress.service import Ingress
from rearview.ingress.sessions import Record
from rearview.ingress.status import abort
from rearview.ingress.stream import TranslateStream
from rearview.telemetry.logging import log_fault
from rearview.v1 import session_service_pb2 as sessions_pb
from rearview.v1 import session_service_pb2_grpc, translation_service_pb2_grpc

__all__ = ["SessionServicer", "TranslationServicer"]

logger = logging.getLogger(__name__)

MAX_PAGE_SIZE = 1000
DEFAULT_PAGE_SIZE = 100

Context = grpc.aio.ServicerContext[Any, Any]
T = TypeVar("T")


async def _guarded(context: Context, call: Callable[[], Awaitable[T]]) -> T | None:
    """Run a handler; no exception's text but our own reaches a client."""
    try:
        return await call()
    except RearviewError as error:
        await abort(context, error)
    except grpc.aio.BaseError:
        logger.debug("the client is gone")
    except Exception as error:  # The edge of a call: what was not foreseen ends this call only.
        error_id = log_fault(logger, "call failed", error)
        await abort(context, Fault(metadata={"error_id": error_id}))
    return None


class TranslationServicer(translation_service_pb2_grpc.TranslationServiceServicer):
    """Serves `rearview.v1.TranslationService`."""

    def __init__(self, ingress: Ingress) -> None:
        self._ingress = ingress

    async def Translate(self, request_iterator: AsyncIterator[Any], context: Context) -> None:  # type: ignore[override]  # noqa: N802
        """One stream; messages are read and written through `context`."""
        await _guarded(context, lambda: self._translate(context))

    async def _translate(self, context: Context) -> None:
        ingress, stream = self._ingress, None
        try:
            tenant = ingress.tenants.authenticate(_metadata(context))
            ingress.admission.open_stream(tenant)
            stream = TranslateStream(ingress, context, tenant)
            ingress.events(StreamOpened())
            await stream.run()
        except RearviewError as error:
            if stream is None or not stream.opened:
                ingress.events(OpenRefused(error.reason))
            raise
        finally:
            if stream is not None:
                ingress.admission.close_stream(tenant)
                ingress.events(StreamClosed())


class SessionServicer(session_service_pb2_grpc.SessionServiceServicer):
    """Serves `rearview.v1.SessionService`, for the sessions that this ingress feeds."""

    def __init__(self, ingress: Ingress) -> None:
        self._ingress = ingress

    async def GetSession(  # type: ignore[override]  # noqa: N802
        self, request: sessions_pb.GetSessionRequest, context: Context
    ) -> sessions_pb.GetSessionResponse | None:
        """One session of the caller's tenant."""

        async def get() -> sessions_pb.GetSessionResponse:
            record = self._ingress.sessions.find(self._tenant(context), request.session_id)
            return sessions_pb.GetSessionResponse(session=session_message(record))

        return await _guarded(context, get)

    async def ListSessions(  # type: ignore[override]  # noqa: N802
        self, request: sessions_pb.ListSessionsRequest, context: Context
    ) -> sessions_pb.ListSessionsResponse | None:
        """The caller's tenant's sessions, a page at a time. The token is the place of the page's last one."""

        async def page() -> sessions_pb.ListSessionsResponse:
            records = self._ingress.sessions.of(self._tenant(context))
            size = request.page_size or DEFAULT_PAGE_SIZE
            if not 1 <= size <= MAX_PAGE_SIZE:
                raise _out_of_range("page_size")
            after = _place_of(request.page_token)
            left = [record for record in records if after is None or _place(record) > after]
            return sessions_pb.ListSessionsResponse(
                sessions=[session_message(record) for record in left[:size]],
                next_page_token=_token(left[size - 1]) if len(left) > size else "",
            )

        return await _guarded(context, page)

    async def CloseSession(  # type: ignore[override]  # noqa: N802
        self, request: sessions_pb.CloseSessionRequest, context: Context
    ) -> sessions_pb.CloseSessionResponse | None:
        """End a session and the stream that feeds it."""

        async def close() -> sessions_pb.CloseSessionResponse:
            record = self._ingress.sessions.find(self._tenant(context), request.session_id)
            self._ingress.sessions.close(record, StreamEnded(Reason.CLOSED, "the session was closed"))
            return sessions_pb.CloseSessionResponse()

        return await _guarded(context, close)

    def _tenant(self, context: Context) -> TenantConfig:
        return self._ingress.tenants.authenticate(_metadata(context))


def _place(record: Record) -> tuple[float, str]:
    """Where a session stands in a list: it keeps its place when others end."""
    return record.open_time_s, record.session.spec.session_id


def _token(record: Record) -> str:
    open_time_s, session_id = _place(record)
    return f"{open_time_s.hex()}/{session_id}"


def _place_of(token: str) -> tuple[float, str] | None:
    """Undo `_token`; None for the start. Raises InvalidRequest."""
    if not token:
        return None
    open_time_s, _, session_id = token.partition("/")
    try:
        return float.fromhex(open_time_s), session_id
    except (ValueError, OverflowError):
        raise _out_of_range("page_token") from None


def _out_of_range(field: str) -> InvalidRequest:
    return InvalidRequest(Reason.SETTING_OUT_OF_RANGE, f"{field} is out of range", metadata={"field": field})


def _metadata(context: Context) -> list[tuple[str, str | bytes]]:
    return [(str(key), value) for key, value in context.invocation_metadata() or ()]
