"""NDI: the program as a source on the network, and a source of it as a camera of the studio.

NDI's own library comes with ndi-python, under NDI's licence. Where sources are not found by themselves (no
multicast), the addresses of their machines are named.
"""

from __future__ import annotations

import asyncio
import logging
import re
import threading
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager, suppress
from dataclasses import replace
from importlib import import_module
from typing import Any

import numpy as np
from av import VideoFrame

from rearview.contract.opening import OpenRequest
from rearview.errors import ConfigError, RearviewError
from rearview.studio.camera import REOPEN_S, Camera
from rearview.studio.gateway import Gateway
from rearview.studio.pictures import Picture
from rearview.studio.protocol import Hello
from rearview.studio.said import Trouble
from rearview.studio.wall import Wall

__all__ = ["NdiIn", "NdiOut", "bringing", "library"]

logger = logging.getLogger(__name__)

INSTALL = "pip install 'rearview[ndi]'"
FPS = 30_000, 1_000
"""What is said of the rate; pictures go out as they come."""
WAIT_MS = 200
"""How long a call of the library may hold its thread."""
FIRST_LOOK = "oil painting"
"""Of a model that names no styles."""
_SOURCE = re.compile(r"[^(]*\((?P<own>.*)\)", re.DOTALL)
"""NDI's full names: `MACHINE (name)`."""
_PLACE = re.compile(r"[\w.-]+:\d{1,5}", re.ASCII)
"""Where a source is, for one that cannot be found."""


def library() -> Any:
    """NDI's library, ready. Raises ConfigError where it is missing, or this machine cannot run it."""
    try:
        ndi = import_module("NDIlib")
    except ImportError as error:
        raise ConfigError(f"--ndi: {error.name or 'NDIlib'} is missing: {INSTALL}") from None
    if not ndi.initialize():
        raise ConfigError("--ndi: NDI's library does not run on this processor")
    return ndi


class NdiOut:
    """An output: a source with a name."""

    name = "NDI out"

    def __init__(self, ndi: Any, source: str) -> None:
        """Raises ConfigError if NDI gives no such source."""
        self._ndi = ndi
        create = ndi.SendCreate()
        create.ndi_name, create.clock_video, create.clock_audio = source, False, False
        self._sender = ndi.send_create(create)
        if self._sender is None:
            raise ConfigError(f"--ndi-out {source}: NDI does not make this source; it may be there already")
        self._frame = ndi.VideoFrameV2()
        self._frame.FourCC = ndi.FOURCC_VIDEO_TYPE_RGBX
        self._frame.frame_rate_N, self._frame.frame_rate_D = FPS

    @property
    def full_name(self) -> str:
        """As others on the network list it."""
        return str(self._ndi.send_get_source_name(self._sender).ndi_name)

    def send(self, picture: Picture) -> None:
        """Send a picture to whoever receives."""
        opaque = np.full((*picture.shape[:2], 4), 255, np.uint8)
        opaque[..., :3] = picture
        self._frame.data = opaque
        self._ndi.send_send_video_v2(self._sender, self._frame)

    def close(self) -> None:
        """The source is gone."""
        self._ndi.send_destroy(self._sender)


class NdiIn:
    """A source of the network, sought until it is there, and again by the library when it has been away."""

    def __init__(self, ndi: Any, source: str, addresses: Sequence[str] = ()) -> None:
        """`source`: the full name, or what stands in its parentheses, or HOST:PORT, which is not sought.
        `addresses`: of machines to ask.
        """
        self._ndi, self.source, self._addresses = ndi, source, ",".join(addresses)

    async def frames(self) -> AsyncIterator[VideoFrame]:
        """Its frames; a thread of its own waits for them."""
        loop, closing = asyncio.get_running_loop(), threading.Event()
        newest: asyncio.Queue[VideoFrame] = asyncio.Queue(1)

        def give(frame: VideoFrame) -> None:
            with suppress(asyncio.QueueEmpty):
                newest.get_nowait()
            newest.put_nowait(frame)

        def work() -> None:
            receiver = self._connect(closing)
            try:
                while not closing.is_set():
                    if (frame := self._receive(receiver)) is not None:
                        loop.call_soon_threadsafe(give, frame)
            finally:
                if receiver is not None:
                    self._ndi.recv_destroy(receiver)

        thread = asyncio.create_task(asyncio.to_thread(work), name="ndi-in")
        try:
            while not thread.done():
                try:
                    async with asyncio.timeout(WAIT_MS / 1000):
                        frame = await newest.get()
                except TimeoutError:
                    continue
                yield frame
            await thread
        finally:
            closing.set()
            await asyncio.shield(asyncio.wait([thread]))

    def _connect(self, closing: threading.Event) -> Any:
        """A receiver of the source, once it is found; None: it is not wanted any more."""
        ndi = self._ndi
        if _PLACE.fullmatch(self.source):
            there = ndi.Source()
            there.ndi_name = there.url_address = self.source
            return self._receiver(there)
        create = ndi.FindCreate()
        create.show_local_sources, create.extra_ips = True, self._addresses or None
        finder = ndi.find_create_v2(create)
        try:
            while not closing.is_set():
                ndi.find_wait_for_sources(finder, WAIT_MS)
                for source in ndi.find_get_current_sources(finder):
                    if self._is_meant(source.ndi_name):
                        logger.info("NDI in: %s is found", source.ndi_name)
                        return self._receiver(source)
        finally:
            ndi.find_destroy(finder)
        return None

    def _receiver(self, source: Any) -> Any:
        create = self._ndi.RecvCreateV3()
        create.source_to_connect_to = source
        create.color_format, create.allow_video_fields = self._ndi.RECV_COLOR_FORMAT_RGBX_RGBA, False
        return self._ndi.recv_create_v3(create)

    def _receive(self, receiver: Any) -> VideoFrame | None:
        ndi = self._ndi
        kind, video, _, _ = ndi.recv_capture_v2(receiver, WAIT_MS, True, False, False)
        if kind != ndi.FRAME_TYPE_VIDEO:
            return None
        try:
            return VideoFrame.from_ndarray(np.ascontiguousarray(video.data), format="rgba")
        finally:
            ndi.recv_free_video_v2(receiver, video)

    def _is_meant(self, full_name: str) -> bool:
        found = _SOURCE.fullmatch(full_name)
        return self.source in (full_name, found and found["own"])


@asynccontextmanager
async def bringing(gateway: Gateway, source: NdiIn | None, options: OpenRequest) -> AsyncIterator[None]:
    """Have the source painted on a wall of its own until the block ends; None: there is none."""
    if source is None:
        yield
        return
    task = asyncio.create_task(_bring(gateway, source, options), name="ndi-in")
    task.add_done_callback(_done)
    try:
        yield
    finally:
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)


def _done(task: asyncio.Task[None]) -> None:
    if not task.cancelled() and (failure := task.exception()) is not None:
        logger.error("NDI in failed", exc_info=failure)


async def _bring(gateway: Gateway, source: NdiIn, options: OpenRequest) -> None:
    """From one wall to the next: a wall may be evicted, and the service may be away. What the service will
    never take ends it.
    """
    while True:
        try:
            wall, resumed = gateway.enter(Hello())
            try:
                await _paint(wall, source, options, resumed=resumed)
            finally:
                gateway.leave(wall)
        except RearviewError as error:
            if error.status == "INVALID_ARGUMENT":
                logger.error("NDI in has ended: %s", error.message)
                gateway.tell_pages(
                    Trouble(about="ndi in", title="NDI in has ended", help=f"{error.message}.")
                )
                return
            logger.warning("NDI in: %s", error.message)
            await asyncio.sleep(REOPEN_S)


async def _paint(wall: Wall, source: NdiIn, options: OpenRequest, *, resumed: bool) -> None:
    """Until the wall has ended. Raises RearviewError if there is no session for it."""
    camera = Camera(wall, await _with_look(wall, options), resumed=resumed)
    try:
        await camera.opened()
        camera.show(source.frames())
        await camera.over.wait()
    finally:
        await camera.close()


async def _with_look(wall: Wall, options: OpenRequest) -> OpenRequest:
    """With the look that a page begins with, if none was asked. Raises RearviewError where nothing serves."""
    if options.settings.prompt is not None:
        return options
    model = (await wall.service()).model
    styles = (style.prompt for style in model.styles if "natural" not in style.name)
    prompt = next(styles, FIRST_LOOK)
    return replace(options, settings=replace(options.settings, prompt=prompt))
