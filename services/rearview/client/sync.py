"""The client without asyncio: the same names, blocking, on a loop in a thread of its own.

    with Client("127.0.0.1:50051") as client, client.open(prompt="pencil sketch") as session:
        session.send(frame)
        session.finish()
        for answer in session:
            ...

A stream flows in both directions at once: a caller that only sends is stopped by credit until answers
are taken. Send from one thread and iterate in another, or use `Client.translate_frames`.
"""

from __future__ import annotations

import asyncio
import threading
from collections import Counter
from collections.abc import AsyncGenerator, Coroutine, Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractAsyncContextManager
from types import TracebackType
from typing import Any, Generic, Self, TypeVar, Unpack

from rearview.client import aio, translator
from rearview.client import session as aio_session
from rearview.client.aio import Tls
from rearview.client.answers import Answer, Image, Opened
from rearview.client.exchange import Item
from rearview.client.kinds import PictureKind
from rearview.client.options import OpenOptions, SettingOptions
from rearview.client.reconnect import Reconnect
from rearview.client.sessions import SessionInfo
from rearview.client.tokens import Token
from rearview.client.translator import connect
from rearview.client.wire import NO_CONTROLS
from rearview.contract.model import Model
from rearview.contract.stream import ImageFormat
from rearview.errors import DropReason

__all__ = ["Client", "Session", "Translator", "connect_sync"]

_T = TypeVar("_T")
_Entered = TypeVar("_Entered", bound=AbstractAsyncContextManager[object])


class _LoopThread:
    """An event loop that runs in a daemon thread until `close`."""

    def __init__(self) -> None:
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, name="rearview-client", daemon=True)
        self._thread.start()

    @classmethod
    def begun(cls, work: Coroutine[Any, Any, object]) -> Self:
        """One in which `work` was done; if that fails there is none."""
        thread = cls()
        try:
            thread.run(work)
        except BaseException:
            thread.close()
            raise
        return thread

    def run(self, work: Coroutine[Any, Any, _T]) -> _T:
        """The result of `work`; KeyboardInterrupt here cancels it there."""
        future = asyncio.run_coroutine_threadsafe(work, self._loop)
        try:
            return future.result()
        except BaseException:
            future.cancel()
            raise

    def each(self, items: AsyncGenerator[_T, None]) -> Iterator[_T]:
        """The items; left early, the generator is closed when this one is, or with the loop."""
        step: asyncio.Task[_T] | None = None

        async def take() -> _T:
            nonlocal step
            step = asyncio.current_task()
            return await anext(items)

        async def close() -> None:
            # KeyboardInterrupt leaves while a step is under way; closed meanwhile, a generator raises.
            if step is not None and not step.done():
                if not step.cancelling():
                    step.cancel()
                await asyncio.wait([step])
            await items.aclose()

        try:
            while True:
                try:
                    item = self.run(take())
                except StopAsyncIteration:
                    return
                yield item
        finally:
            if not self._loop.is_closed():
                self.run(close())

    def close(self) -> None:
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.run_until_complete(self._loop.shutdown_asyncgens())
        self._loop.close()


class _Threaded(Generic[_Entered]):
    """What `with` enters in a loop of its own thread."""

    def __init__(self, inner: _Entered) -> None:
        self._inner = inner
        self._thread: _LoopThread | None = None

    def __enter__(self) -> Self:
        self._thread = _LoopThread.begun(self._inner.__aenter__())
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        thread = self._open_thread()
        try:
            thread.run(self._inner.__aexit__(kind, error, trace))
        finally:
            thread.close()

    def _open_thread(self) -> _LoopThread:
        if self._thread is None:
            raise RuntimeError(f"enter the {type(self).__name__.lower()} with `with` first")
        return self._thread


class Client(_Threaded[aio.Client]):
    """See `rearview.client.Client`. Use it with `with`; its methods may be called from any thread."""

    def __init__(
        self,
        address: str | Sequence[str],
        token: Token = None,
        *,
        tls: Tls | bool = False,
        reconnect: Reconnect | None = None,
    ) -> None:
        super().__init__(aio.Client(address, token, tls=tls, reconnect=reconnect))

    def open(self, **options: Unpack[OpenOptions]) -> Session:
        """A new session; `with` opens it."""
        return Session(self._open_thread(), self._inner, options)

    def translate_frames(self, frames: Iterable[Item], **options: Unpack[OpenOptions]) -> Iterator[Answer]:
        """Send `frames` and yield the answers as they come; see `rearview.client.Client.translate_frames`.

        `frames` is read in another thread.
        """
        return self._open_thread().each(self._inner.translate_frames(frames, **options))

    def describe_model(self) -> Model:
        """The model that the service serves, what sessions may ask of it, and within which limits."""
        return self._open_thread().run(self._inner.describe_model())

    def get_session(self, session_id: str) -> SessionInfo:
        """Raises NotFound if the tenant has no such session."""
        return self._open_thread().run(self._inner.get_session(session_id))

    def list_sessions(self) -> list[SessionInfo]:
        """The tenant's sessions, oldest first."""
        return self._open_thread().run(self._inner.list_sessions())

    def close_session(self, session_id: str) -> None:
        """End a session and the stream that feeds it. Raises NotFound if there is none."""
        self._open_thread().run(self._inner.close_session(session_id))


def connect_sync(
    address: str | Sequence[str],
    token: Token = None,
    *,
    tls: Tls | bool = False,
    reconnect: Reconnect | None = None,
    **options: Unpack[OpenOptions],
) -> Translator:
    """See `rearview.connect`; use it with `with`."""
    return Translator(connect(address, token, tls=tls, reconnect=reconnect, **options))


class Translator(_Threaded[translator.Translator]):
    """See `rearview.client.Translator`; made by `rearview.connect_sync`."""

    def translate(
        self, frames: Iterable[Any], kind: PictureKind | None = None, **options: Unpack[OpenOptions]
    ) -> Iterator[Any]:
        """Translate a video; see `rearview.client.Translator.translate`."""
        return self._open_thread().each(self._inner.translate(frames, kind, **options))

    def control(self, **changes: Unpack[SettingOptions]) -> int:
        """Change settings of the video that is being translated, from the next frame on that is sent."""
        return self._open_thread().run(self._inner.control(**changes))

    @property
    def opened(self) -> Opened:
        """The open session: its id, model, size and settings. Raises RuntimeError if there is none."""
        return self._inner.opened

    @property
    def dropped(self) -> Counter[DropReason]:
        """Frames of the latest video that came to no picture, by reason."""
        return self._inner.dropped


class Session:
    """See `rearview.client.Session`."""

    def __init__(self, thread: _LoopThread, client: aio.Client, options: OpenOptions) -> None:
        self._thread, self._client, self._options = thread, client, options
        self._inner: aio_session.Session | None = None

    def __enter__(self) -> Self:
        self._inner = self._thread.run(self._enter())
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._thread.run(self._open_session().__aexit__(kind, error, trace))

    @property
    def opened(self) -> Opened:
        """The open session: its id, model, size and settings."""
        return self._open_session().opened

    def send(
        self,
        frame: Image | bytes,
        *,
        index: int | None = None,
        presentation_s: float = 0.0,
        format: ImageFormat = ImageFormat.JPEG,
        controls: Mapping[str, Image | bytes] = NO_CONTROLS,
    ) -> int:
        """Send one frame, waiting for credit; returns its index."""
        session = self._open_session()
        return self._thread.run(
            session.send(frame, index=index, presentation_s=presentation_s, format=format, controls=controls)
        )

    def control(self, **changes: Unpack[SettingOptions]) -> int:
        """Change settings from the next frame on; returns the control's id."""
        return self._thread.run(self._open_session().control(**changes))

    def finish(self) -> None:
        """Half-close: nothing more will be sent; the iteration goes on to the last answer."""
        self._thread.run(self._open_session().finish())

    def __iter__(self) -> Iterator[Answer]:
        return self

    def __next__(self) -> Answer:
        try:
            return self._thread.run(self._next())
        except StopAsyncIteration:
            raise StopIteration from None

    async def _enter(self) -> aio_session.Session:
        # Inside the loop's thread: the session makes futures and tasks.
        return await self._client.open(**self._options).__aenter__()

    async def _next(self) -> Answer:
        return await anext(self._open_session())

    def _open_session(self) -> aio_session.Session:
        if self._inner is None:
            raise RuntimeError("enter the session with `with` first")
        return self._inner
