"""Send and receive at once: the common case of a session.

An item of the source is an image, a `Frame` where more is to be said of it, or `SettingsChange`: a control.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, AsyncIterable, Iterable, Mapping
from dataclasses import dataclass, field
from functools import partial

from rearview.client.answers import Answer, Image
from rearview.client.reading import in_thread
from rearview.client.session import Session
from rearview.contract.settings import SettingsChange
from rearview.contract.stream import ImageFormat
from rearview.errors import RearviewError, Reason, StreamEnded

__all__ = ["Frame", "Item", "exchange"]


@dataclass(frozen=True)
class Frame:
    """One frame for `translate_frames`, where an image alone does not say enough."""

    image: Image | bytes
    presentation_s: float = 0.0
    index: int | None = None
    format: ImageFormat = ImageFormat.JPEG
    """How `image` is to be read if it is bytes."""
    controls: Mapping[str, Image | bytes] = field(default_factory=dict)
    """By name of a ControlNet, what it is shown of this frame, as `image` is given."""


Item = Image | Frame | SettingsChange


async def exchange(
    session: Session, frames: Iterable[Item] | AsyncIterable[Item]
) -> AsyncGenerator[Answer, None]:
    """Send `frames` over an open session and yield its answers as they come, to the last one.

    A plain iterable is read in a thread, since it may decode video. Raises the session's error, or what
    the source has raised.
    """
    sender = asyncio.create_task(_send_all(session, frames))
    sender.add_done_callback(partial(_abort_if_failed, session))
    try:
        async for answer in session:
            yield answer
    except RearviewError:
        if sender.done() and (failure := sender.exception()) is not None:
            raise failure from None
        raise
    finally:
        sender.cancel()
        await asyncio.gather(sender, return_exceptions=True)


async def _send_all(session: Session, frames: Iterable[Item] | AsyncIterable[Item]) -> None:
    source = frames if isinstance(frames, AsyncIterable) else in_thread(frames)
    async for item in source:
        if isinstance(item, SettingsChange):
            await session.control(**item.named())
        elif isinstance(item, Frame):
            await session.send(
                item.image,
                index=item.index,
                presentation_s=item.presentation_s,
                format=item.format,
                controls=item.controls,
            )
        else:
            await session.send(item)
    await session.finish()


def _abort_if_failed(session: Session, sender: asyncio.Task[None]) -> None:
    if not sender.cancelled() and sender.exception() is not None:
        session.abort(StreamEnded(Reason.CLOSED, "the source of frames has failed"))
