"""Pictures in, pictures out: `rearview.connect`, for programs that want no more than that.

async with rearview.connect("localhost", prompt="oil painting") as service:
    async for picture in service.translate(frames):
        ...

lossless   frames ───────────────► session ───────────────► pictures and reasons, one for each frame
live       frames ─► the newest ─► session ─► the newest ─► pictures; what was left out is counted
"""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import AsyncGenerator, AsyncIterable, AsyncIterator, Iterable, Sequence, Sized
from contextlib import AsyncExitStack, aclosing
from dataclasses import replace
from types import TracebackType
from typing import Any, Self, TypeAlias, Unpack
from weakref import ReferenceType, ref

import numpy as np

from rearview.client.aio import LEAST_RATE, Client, Tls
from rearview.client.answers import Answer, ControlApplied, Dropped, Image, Opened, Translated
from rearview.client.exchange import Frame, Item, exchange
from rearview.client.kinds import PictureKind, kind_named, kind_of
from rearview.client.newest import newest
from rearview.client.options import OpenOptions, SettingOptions, checked_options
from rearview.client.reading import in_thread
from rearview.client.reconnect import Reconnect
from rearview.client.session import Session
from rearview.client.tokens import Token
from rearview.contract.settings import SettingsChange
from rearview.contract.stream import DropPolicy
from rearview.errors import DropReason, InvalidRequest, Reason, StreamEnded

__all__ = ["Translator", "connect"]

Pictures: TypeAlias = AsyncGenerator[Any, None]


def connect(
    address: str | Sequence[str],
    token: Token = None,
    *,
    tls: Tls | bool = False,
    reconnect: Reconnect | None = None,
    **options: Unpack[OpenOptions],
) -> Translator:
    """The service at `address`, for sessions that are opened with `options`; use it with `async with`.

    The first four are those of `Client`. Raises ValueError for what is no address; TypeError and ValueError
    for an option that there is not, or that cannot be so.
    """
    return Translator(Client(address, token, tls=tls, reconnect=reconnect), checked_options(options))


class Translator:
    """A service, and how sessions are opened there; made by `rearview.connect`. It translates one video at a
    time, each in a session of its own.
    """

    def __init__(self, client: Client, options: OpenOptions) -> None:
        self._client, self._options = client, options
        self._session: Session | None = None
        self._pictures: ReferenceType[Pictures] | None = None
        self._is_busy = asyncio.Lock()
        """Held while there is a video, until its session is closed."""
        self._dropped: Counter[DropReason] = Counter()

    async def __aenter__(self) -> Self:
        await self._client.__aenter__()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        try:
            await self._leave()
        finally:
            await self._client.__aexit__(kind, error, trace)

    def translate(
        self,
        frames: Iterable[Any] | AsyncIterable[Any],
        kind: PictureKind | None = None,
        **options: Unpack[OpenOptions],
    ) -> AsyncGenerator[Any, None]:
        """Translate a video; yields its pictures, as they come.

        `frames`: numpy arrays (height, width, 3) of uint8, torch tensors (3, height, width) or (height,
        width, 3) of uint8 or floating from 0 to 1, PIL images of any mode, or JPEG bytes; `Frame`s of them;
        and `SettingsChange`s between them. Pictures are of the kind of the first frame (type and device of
        a tensor too), or of `kind`: "numpy", "torch", "pil" or "bytes". Without `width` and `height` the
        session has the size of the first frame. `options` come on top of those of `connect`.

        Frames that are all there (a list, a tuple, an array or tensor of many) are translated without loss:
        so many items as frames are yielded, a picture or the `Dropped` that says why there is none, and who
        takes them slowly slows the sending. Any other iterable is taken for live: always the newest frame
        is sent and the newest picture yielded, and `dropped` counts the others. `drop_policy` decides it for
        all of them. A plain iterable is read in a thread.

        Raises `RearviewError` where the session cannot be opened or is ended, InvalidRequest for a change
        that is refused, ValueError or TypeError for what is no frame, and what `frames` raises. Another call
        ends this one.
        """
        own: list[ReferenceType[Pictures]] = []
        pictures = self._translated(own, frames, kind, {**self._options, **checked_options(options)})
        own.append(ref(pictures))
        return pictures

    async def control(self, **changes: Unpack[SettingOptions]) -> int:
        """Change settings of the video that is being translated, from the next frame on that is sent. Returns
        the control's id. Raises RuntimeError if none is, and StreamEnded once its last frame was sent.
        """
        return await self._open_session().control(**changes)

    @property
    def opened(self) -> Opened:
        """The open session: its id, model, size and settings. Raises RuntimeError if there is none."""
        return self._open_session().opened

    @property
    def dropped(self) -> Counter[DropReason]:
        """Frames of the latest video that came to no picture, by reason. SUPERSEDED are also those that the
        client left out: a newer one was there before they were sent, or before their picture was taken.
        """
        return self._dropped

    async def _translated(
        self,
        own: Sequence[ReferenceType[Pictures]],
        frames: Iterable[Any] | AsyncIterable[Any],
        kind: PictureKind | None,
        options: OpenOptions,
    ) -> AsyncGenerator[Any, None]:
        """`own`: this generator; not held, so that one that was broken off is collected and ends."""
        policy = options.get("drop_policy")
        if policy is None:
            policy = DropPolicy.LOSSLESS if isinstance(frames, Sized) else DropPolicy.LATEST
        if policy is DropPolicy.LOSSLESS:
            # They take the time they take: no rate is reserved for them.
            options.setdefault("frame_rate", LEAST_RATE)
        await self._leave()
        async with AsyncExitStack() as stack:
            await stack.enter_async_context(self._is_busy)
            self._pictures, self._dropped = own[0], Counter()
            if isinstance(frames, AsyncIterable):
                source = aiter(frames)
            else:
                source = await stack.enter_async_context(aclosing(in_thread(frames)))
            given = _Given(source, kind)
            if not await given.begin():
                return
            options = {**given.size, **options, "drop_policy": policy}
            self._session = session = await stack.enter_async_context(self._client.open(**options))
            stack.callback(self._forget_session)
            items = await stack.enter_async_context(aclosing(given.items()))
            answers = await stack.enter_async_context(aclosing(self._answered(session, items, policy)))
            async for answer in answers:
                yield answer if isinstance(answer, Dropped) else given.picture(answer)

    def _forget_session(self) -> None:
        self._session = None

    async def _answered(
        self, session: Session, items: AsyncGenerator[Item, None], policy: DropPolicy
    ) -> AsyncGenerator[Translated | Dropped, None]:
        if policy is DropPolicy.LOSSLESS:
            async with aclosing(exchange(session, items)) as answers:
                async for answer in answers:
                    if isinstance(kept := self._counted(answer), Translated | Dropped):
                        yield kept
            return
        async with (
            aclosing(newest(items, self._only_newest_frame)) as latest,
            aclosing(exchange(session, latest)) as answers,
            aclosing(newest(answers, self._only_newest_picture)) as pictures,
        ):
            async for answer in pictures:
                if isinstance(answer, Translated):
                    yield answer

    def _counted(self, answer: Answer) -> Answer:
        """Raises InvalidRequest for a change that was refused."""
        if isinstance(answer, Dropped):
            self._dropped[answer.reason] += 1
        elif isinstance(answer, ControlApplied) and answer.rejected_reason is not None:
            text = f"the change at frame {answer.received_frames} was refused: {answer.advice}"
            raise InvalidRequest(answer.rejected_reason, text)
        return answer

    def _only_newest_frame(self, waiting: list[Item], item: Item) -> list[Item]:
        """Changes between frames are all kept."""
        if isinstance(item, SettingsChange):
            return [*waiting, item]
        kept = [each for each in waiting if isinstance(each, SettingsChange)]
        self._dropped[DropReason.SUPERSEDED] += len(waiting) - len(kept)
        return [*kept, item]

    def _only_newest_picture(self, waiting: list[Answer], answer: Answer) -> list[Answer]:
        if not isinstance(self._counted(answer), Translated):
            return waiting
        self._dropped[DropReason.SUPERSEDED] += len(waiting)
        return [answer]

    async def _leave(self) -> None:
        """End the video that is not over yet. Raises RuntimeError while another task waits for its first
        picture.
        """
        pictures = None if self._pictures is None else self._pictures()
        if pictures is not None:
            try:
                await pictures.aclose()
            except RuntimeError:  # Another task waits for its next picture, or closes it.
                if self._session is None:
                    raise
                self._session.abort(StreamEnded(Reason.CLOSED, "the video was left"))
        async with self._is_busy:
            self._pictures = None

    def _open_session(self) -> Session:
        if self._session is None:
            raise RuntimeError("nothing is being translated")
        return self._session


class _Given:
    """What a program hands over, as a session takes it. Kind and size are those of its first frame."""

    def __init__(self, source: AsyncIterator[Any], kind: PictureKind | None) -> None:
        self._source, self._kind = source, None if kind is None else kind_named(kind)
        self._begun: list[Item] = []
        self.size: OpenOptions = {}

    async def begin(self) -> bool:
        """Read to the first frame. False: there is none."""
        async for item in self._source:
            self._begun.append(_item(item))
            if isinstance(item, SettingsChange):
                continue
            if self._kind is None:
                self._kind = kind_of(item.image if isinstance(item, Frame) else item)
            first = self._begun[-1].image if isinstance(self._begun[-1], Frame) else None
            if isinstance(first, np.ndarray):
                self.size = {"width": first.shape[1], "height": first.shape[0]}
            return True
        return False

    async def items(self) -> AsyncGenerator[Item, None]:
        """All of it."""
        for begun in self._begun:
            yield begun
        async for item in self._source:
            yield _item(item)

    def picture(self, answer: Translated) -> Any:
        """An answer as the program wants its pictures."""
        assert self._kind is not None
        return self._kind.give(answer)


def _item(given: Any) -> Frame | SettingsChange:
    if isinstance(given, SettingsChange):
        return given
    if not isinstance(given, Frame):
        return Frame(_image(given))
    controls = {name: _image(shown) for name, shown in given.controls.items()}
    return replace(given, image=_image(given.image), controls=controls)


def _image(picture: Any) -> Image | bytes:
    """Raises TypeError and ValueError for what is no picture."""
    image = kind_of(picture).read(picture)
    if not isinstance(image, bytes) and (image.ndim != 3 or image.shape[2] != 3):
        hint = ": is that one row of a frame? A video is a list of frames" if image.ndim == 2 else ""
        raise ValueError(f"a frame is (height, width, 3) uint8, not {image.dtype} {image.shape}{hint}")
    if not isinstance(image, bytes) and image.dtype != np.uint8:
        raise ValueError(f"a frame has 0 to 255 as uint8, not {image.dtype}: (255 * frame).astype(np.uint8)")
    return image
