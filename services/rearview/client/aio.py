"""The async client: one connection, any number of sessions.

    async with Client("127.0.0.1:50051") as client:
        async with client.open(prompt="oil painting", drop_policy=DropPolicy.LOSSLESS) as session:
            await session.send(frame)
            await session.finish()
            async for answer in session:
                ...

`Client.translate_frames` does the common case, sending and receiving at once.
"""

from __future__ import annotations

from collections.abc import AsyncGenerator, AsyncIterable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, Self, Unpack

import grpc

from rearview.client import sessions
from rearview.client.answers import Answer
from rearview.client.call import Call
from rearview.client.exchange import Frame, Item, exchange
from rearview.client.faults import error_of
from rearview.client.options import OpenOptions
from rearview.client.reconnect import Reconnect
from rearview.client.session import Session
from rearview.v1 import session_service_pb2 as session_pb
from rearview.v1.session_service_pb2_grpc import SessionServiceStub
from rearview.v1.translation_service_pb2_grpc import TranslationServiceStub

__all__ = ["Client", "Frame", "Tls"]

MAX_MESSAGE_BYTES = 8 << 20
"""A raw frame of 1024² pixels is 3 MiB."""

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

_CLOSE_TIMEOUT_S = 2.0


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
    """A connection to the service at `address` ("host:port", or "unix:path"). Use it with `async with`.

    `token` is the tenant's bearer token; `tls` switches TLS on (True: the system's authorities).
    Opening and calls raise `rearview.errors` exceptions; `Unreachable` is the one for the way there.
    """

    def __init__(
        self,
        address: str,
        token: str | None = None,
        *,
        tls: Tls | bool = False,
        reconnect: Reconnect | None = None,
        options: Sequence[tuple[str, str | int]] = (),
    ) -> None:
        self._address = address
        self._reconnect = reconnect or Reconnect()
        self._metadata = (("authorization", f"Bearer {token}"),) if token else ()
        self._tls = Tls() if tls is True else tls or None
        self._options = [*CHANNEL_OPTIONS, *options]
        self._channel: grpc.aio.Channel | None = None

    async def __aenter__(self) -> Self:
        options = list(self._options)
        if self._tls is None:
            self._channel = grpc.aio.insecure_channel(self._address, options)
            return self
        if self._tls.server_name:
            options.append(("grpc.ssl_target_name_override", self._tls.server_name))
        self._channel = grpc.aio.secure_channel(self._address, self._tls.credentials(), options)
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._channel is not None:
            await self._channel.close()

    def open(self, **options: Unpack[OpenOptions]) -> Session:
        """A new session; `async with` opens it. Raises RearviewError there: refused, invalid, unreachable."""
        channel = self._open_channel()

        def connect() -> Call:
            return Call(TranslationServiceStub(channel).Translate(metadata=self._metadata))

        return Session(connect, self.close_session, options, self._reconnect, self._address)

    async def translate_frames(
        self,
        frames: Iterable[Item] | AsyncIterable[Item],
        **options: Unpack[OpenOptions],
    ) -> AsyncGenerator[Answer, None]:
        """Send `frames` and yield the answers as they come, to the last one.

        Leaving it early ends the session when the iterator is closed (`contextlib.aclosing`).
        Pipelined: frames are sent while answers are received. An item of type `SettingsChange` between
        frames is a control. A plain iterable is read in a thread, since it may decode video.
        """
        async with self.open(**options) as session:
            async for answer in exchange(session, frames):
                yield answer

    async def get_session(self, session_id: str) -> sessions.SessionInfo:
        """Raises NotFound if the tenant has no such session."""
        stub = SessionServiceStub(self._open_channel())
        response = await self._unary(stub.GetSession, session_pb.GetSessionRequest(session_id=session_id))
        return sessions.session_info(response.session)

    async def list_sessions(self) -> list[sessions.SessionInfo]:
        """The tenant's sessions, oldest first."""
        stub, found, page_token = SessionServiceStub(self._open_channel()), [], ""
        while True:
            request = session_pb.ListSessionsRequest(page_size=1000, page_token=page_token)
            response = await self._unary(stub.ListSessions, request)
            found += [sessions.session_info(message) for message in response.sessions]
            page_token = response.next_page_token
            if not page_token:
                return found

    async def close_session(self, session_id: str) -> None:
        """End a session and the stream that feeds it. Raises NotFound if there is none."""
        stub = SessionServiceStub(self._open_channel())
        await self._unary(stub.CloseSession, session_pb.CloseSessionRequest(session_id=session_id))

    async def _unary(self, method: Any, request: object) -> Any:
        try:
            return await method(request, metadata=self._metadata, timeout=_CLOSE_TIMEOUT_S)
        except grpc.aio.AioRpcError as failure:
            raise error_of(failure, self._address) from failure

    def _open_channel(self) -> grpc.aio.Channel:
        if self._channel is None:
            raise RuntimeError("enter the client with `async with` first")
        return self._channel
