"""The gRPC services. Who calls is known, requests are read and errors become statuses at the door."""

from __future__ import annotations

import time
from collections.abc import AsyncIterator
from typing import Any

from rearview.contract.events import OpenRefused, StreamClosed, StreamOpened
from rearview.control.offering import model_of
from rearview.errors import InvalidRequest, RearviewError, Reason, Refused
from rearview.ingress.callers import Context, tenant_of
from rearview.ingress.catalogue import Found, place_of
from rearview.ingress.messages import session_message
from rearview.ingress.service import Ingress
from rearview.ingress.stream import TranslateStream
from rearview.schema import to_message
from rearview.schema.tables import MODEL
from rearview.v1 import model_service_pb2 as models_pb
from rearview.v1 import (
    model_service_pb2_grpc,
    session_service_pb2_grpc,
    translation_service_pb2_grpc,
)
from rearview.v1 import session_service_pb2 as sessions_pb

__all__ = ["ModelServicer", "SessionServicer", "TranslationServicer"]

MAX_PAGE_SIZE = 1000
DEFAULT_PAGE_SIZE = 100


class TranslationServicer(translation_service_pb2_grpc.TranslationServiceServicer):
    """Serves `rearview.v1.TranslationService`."""

    def __init__(self, ingress: Ingress) -> None:
        self._ingress = ingress

    async def Translate(self, request_iterator: AsyncIterator[Any], context: Context) -> None:  # type: ignore[override]  # noqa: N802
        """One stream; messages are read and written through `context`."""
        ingress, stream, tenant, asked_s = self._ingress, None, tenant_of(context), time.monotonic()
        try:
            await context.send_initial_metadata(())  # Says at once that this process is alive.
            stream = TranslateStream(ingress, context, tenant)
            ingress.events(StreamOpened())
            await stream.run()
        except RearviewError as error:
            if stream is None or not stream.opened:
                # Other ends than for want of room are no wait that room would have spared.
                waited_s = time.monotonic() - asked_s if isinstance(error, Refused) else 0.0
                ingress.events(OpenRefused(error.reason, tenant.name, waited_s))
            raise
        finally:
            if stream is not None:
                ingress.events(StreamClosed())


class SessionServicer(session_service_pb2_grpc.SessionServiceServicer):
    """Serves `rearview.v1.SessionService`, for the sessions of every ingress."""

    def __init__(self, ingress: Ingress) -> None:
        self._ingress = ingress

    async def GetSession(  # noqa: N802
        self, request: sessions_pb.GetSessionRequest, context: Context
    ) -> sessions_pb.GetSessionResponse:
        """One session of the caller's tenant."""
        found = await self._ingress.catalogue.find(tenant_of(context), request.session_id)
        return sessions_pb.GetSessionResponse(session=self._message(found))

    async def ListSessions(  # noqa: N802
        self, request: sessions_pb.ListSessionsRequest, context: Context
    ) -> sessions_pb.ListSessionsResponse:
        """The caller's tenant's sessions, a page at a time. The token is the place of the page's last one."""
        size = request.page_size or DEFAULT_PAGE_SIZE
        if not 1 <= size <= MAX_PAGE_SIZE:
            raise _out_of_range("page_size")
        after = _place(request.page_token)
        everything = await self._ingress.catalogue.of(tenant_of(context))
        left = [found for found in everything if after is None or place_of(found) > after]
        return sessions_pb.ListSessionsResponse(
            sessions=[self._message(found) for found in left[:size]],
            next_page_token=_token(left[size - 1]) if len(left) > size else "",
        )

    async def CloseSession(  # noqa: N802
        self, request: sessions_pb.CloseSessionRequest, context: Context
    ) -> sessions_pb.CloseSessionResponse:
        """End a session and the stream that feeds it."""
        await self._ingress.catalogue.close(tenant_of(context), request.session_id)
        return sessions_pb.CloseSessionResponse()

    def _message(self, found: Found) -> sessions_pb.Session:
        return session_message(found, self._ingress.config.model.name)


class ModelServicer(model_service_pb2_grpc.ModelServiceServicer):
    """Serves `rearview.v1.ModelService`."""

    def __init__(self, ingress: Ingress) -> None:
        self._ingress = ingress

    async def DescribeModel(  # noqa: N802
        self, request: models_pb.DescribeModelRequest, context: Context
    ) -> models_pb.DescribeModelResponse:
        """The model, within the limits of the caller's tenant."""
        model = model_of(self._ingress.admission.served, tenant_of(context))
        return models_pb.DescribeModelResponse(model=to_message(MODEL, model))


def _token(found: Found) -> str:
    open_time_s, session_id = place_of(found)
    return f"{open_time_s.hex()}/{session_id}"


def _place(token: str) -> tuple[float, str] | None:
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
