"""The async client: one service at one or several addresses, any number of sessions.

    async with Client("127.0.0.1:50051") as client:
        async with client.open(prompt="oil painting", drop_policy=DropPolicy.LOSSLESS) as session:
            await session.send(frame)
            await session.finish()
            async for answer in session:
                ...

`Client.translate_frames` does the common case, sending and receiving at once.
"""

from __future__ import annotations

from collections.abc import AsyncGenerator, AsyncIterable, Callable, Iterable, Sequence, Sized
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from types import TracebackType
from typing import Any, Self, Unpack

import grpc

from rearview.client import sessions
from rearview.client.answers import Answer
from rearview.client.call import Call
from rearview.client.exchange import Frame, Item, exchange
from rearview.client.faults import error_of
from rearview.client.losses import Unreachable
from rearview.client.options import OpenOptions, checked_options
from rearview.client.reconnect import Reconnect
from rearview.client.routes import Routes, addresses_of
from rearview.client.session import Session
from rearview.client.tokens import Metadata, Token, Tokens
from rearview.contract.model import Model
from rearview.contract.stream import DropPolicy
from rearview.errors import RearviewError
from rearview.schema import from_message
from rearview.schema.tables import MODEL
from rearview.v1 import model_service_pb2 as model_pb
from rearview.v1 import session_service_pb2 as session_pb
from rearview.v1.model_service_pb2_grpc import ModelServiceStub
from rearview.v1.session_service_pb2_grpc import SessionServiceStub
from rearview.v1.translation_service_pb2_grpc import TranslationServiceStub

__all__ = ["Client", "Frame", "Tls"]

MAX_MESSAGE_BYTES = 16 << 20
"""A raw frame of 1024² pixels is 3 MiB, and so is the picture of each of its four controls."""

CHANNEL_OPTIONS: tuple[tuple[str, int], ...] = (
    ("grpc.max_send_message_length", MAX_MESSAGE_BYTES),
    ("grpc.max_receive_message_length", MAX_MESSAGE_BYTES),
    # Below what servers allow (5 min without data is their default, data resets it) would be cut off.
    ("grpc.keepalive_time_ms", 20_000),
    ("grpc.keepalive_timeout_ms", 10_000),
    ("grpc.keepalive_permit_without_calls", 0),
    # The session reconnects by itself; gRPC's own waits of up to two minutes would outlast the grace time.
    ("grpc.enable_retries", 0),
    ("grpc.initial_reconnect_backoff_ms", 100),
    ("grpc.min_reconnect_backoff_ms", 500),
    ("grpc.max_reconnect_backoff_ms", 2_000),
    # Else every client of a process would share one connection, and so one ingress replica.
    ("grpc.use_local_subchannel_pool", 1),
)

_UNARY_TIMEOUT_S = 2.0
LEAST_RATE = 1.0
"""Frames per second that are declared where credit alone sets the pace."""


@dataclass(frozen=True, kw_only=True)
class Tls:
    """TLS files, PEM. With `cert_file` and `key_file` the client proves itself too (mTLS)."""

    ca_file: Path | None = None
    """Who may have signed the server. Default: the system's authorities."""
    cert_file: Path | None = None
    key_file: Path | None = None
    server_name: str | None = None
    """Name in the server's certificate, if it is not the address."""

    def credentials(self) -> grpc.ChannelCredentials:
        """Read the files. Raises OSError."""

        def read(path: Path | None) -> bytes | None:
            return path.read_bytes() if path is not None else None

        return grpc.ssl_channel_credentials(read(self.ca_file), read(self.key_file), read(self.cert_file))


class Client:
    """The service at `address`: "host:port", "host" (port 50051) or "unix:path", several with commas between
    them, or a sequence. Sessions go on at the next address when one does not answer. Use it with
    `async with`. Raises ValueError for what is no address.

    `token` is the tenant's bearer token, or a function, async or not, that is asked for it before each call:
    a session whose token ends goes on with the next one. `tls` switches TLS on (True: the system's
    authorities).
    Opening and calls raise `rearview.errors` exceptions; `Unreachable` is the one for the way there.
    """

    def __init__(
        self,
        address: str | Sequence[str],
        token: Token = None,
        *,
        tls: Tls | bool = False,
        reconnect: Reconnect | None = None,
        options: Sequence[tuple[str, str | int]] = (),
    ) -> None:
        self._addresses = addresses_of(address)
        self._reconnect = reconnect or Reconnect()
        self._tokens = Tokens(token)
        self._tls = Tls() if tls is True else tls or None
        self._options = [*CHANNEL_OPTIONS, *options]
        self._routes: Routes | None = None

    async def __aenter__(self) -> Self:
        credentials = None if self._tls is None else self._tls.credentials()
        options = list(self._options)
        if self._tls is not None and self._tls.server_name:
            options.append(("grpc.ssl_target_name_override", self._tls.server_name))

        def dial(address: str) -> grpc.aio.Channel:
            if credentials is None:
                return grpc.aio.insecure_channel(address, options)
            return grpc.aio.secure_channel(address, credentials, options)

        self._routes = Routes(self._addresses, dial)
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._routes is not None:
            await self._routes.close()

    def open(self, **options: Unpack[OpenOptions]) -> Session:
        """A new session; `async with` opens it. Raises RearviewError there: refused, invalid, unreachable.
        TypeError and ValueError here: an option that there is not, or that cannot be so.
        """
        routes, asked = self._open_routes(), checked_options(options)

        async def connect() -> Call:
            shown = await self._tokens.metadata()
            route = routes.take()
            call = TranslationServiceStub(route.channel).Translate(metadata=shown)
            return Call(call, partial(routes.leave, route), partial(self._tokens.judge, shown=shown))

        return Session(connect, self.close_session, asked, self._reconnect, ", ".join(self._addresses))

    async def translate_frames(
        self,
        frames: Iterable[Item] | AsyncIterable[Item],
        **options: Unpack[OpenOptions],
    ) -> AsyncGenerator[Answer, None]:
        """Send `frames` and yield the answers as they come, to the last one.

        Frames that are all there (a list, a tuple, an array of shape (frames, height, width, 3)) wait for
        their turn: the default policy is LOSSLESS then, and LATEST for an iterator, which may be live.
        Leaving it early ends the session when the iterator is closed (`contextlib.aclosing`).
        Pipelined: frames are sent while answers are received. An item of type `SettingsChange` between
        frames is a control. A plain iterable is read in a thread, since it may decode video.
        """
        if isinstance(frames, Sized) and options.get("drop_policy") is None:
            options["drop_policy"] = DropPolicy.LOSSLESS
            # They take the time they take: no rate is reserved for them.
            options["frame_rate"] = options.get("frame_rate", LEAST_RATE)
        async with self.open(**options) as session:
            async for answer in exchange(session, frames):
                yield answer

    async def describe_model(self) -> Model:
        """The model that the service serves, what sessions may ask of it, and within which limits."""
        response = await self._unary(ModelServiceStub, "DescribeModel", model_pb.DescribeModelRequest())
        return from_message(MODEL, Model, response.model, refuses=False)

    async def get_session(self, session_id: str) -> sessions.SessionInfo:
        """Raises NotFound if the tenant has no such session."""
        request = session_pb.GetSessionRequest(session_id=session_id)
        response = await self._unary(SessionServiceStub, "GetSession", request)
        return sessions.session_info(response.session)

    async def list_sessions(self) -> list[sessions.SessionInfo]:
        """The tenant's sessions, oldest first."""
        found, page_token = [], ""
        while True:
            request = session_pb.ListSessionsRequest(page_size=1000, page_token=page_token)
            response = await self._unary(SessionServiceStub, "ListSessions", request)
            found += [sessions.session_info(message) for message in response.sessions]
            page_token = response.next_page_token
            if not page_token:
                return found

    async def close_session(self, session_id: str) -> None:
        """End a session and the stream that feeds it. Raises NotFound if there is none."""
        request = session_pb.CloseSessionRequest(session_id=session_id)
        await self._unary(SessionServiceStub, "CloseSession", request)

    async def _unary(self, stub: Callable[[grpc.aio.Channel], Any], method: str, request: object) -> Any:
        """Ask at each address, until one answers; once more if the token was just replaced."""
        shown = await self._tokens.metadata()
        try:
            return await self._ask(stub, method, request, shown)
        except RearviewError as error:
            if not await self._tokens.may_come_again(error, shown):
                raise
        return await self._ask(stub, method, request, await self._tokens.metadata())

    async def _ask(
        self, stub: Callable[[grpc.aio.Channel], Any], method: str, request: object, shown: Metadata
    ) -> Any:
        routes = self._open_routes()
        for left in reversed(range(len(routes))):
            route, failed = routes.take(), False
            try:
                call = getattr(stub(route.channel), method)
                return await call(request, metadata=shown, timeout=_UNARY_TIMEOUT_S)
            except grpc.aio.AioRpcError as failure:
                error = error_of(failure, route.address)
                failed = isinstance(error, Unreachable)
                if not failed or not left:
                    raise error from failure
            finally:
                routes.leave(route, failed=failed)
        raise AssertionError("no address")

    def _open_routes(self) -> Routes:
        if self._routes is None:
            raise RuntimeError("enter the client with `async with` first")
        return self._routes
