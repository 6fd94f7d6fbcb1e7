"""A camera that comes by WHIP or NDI: a page without a browser, with one tile. Frames wait for credit.

Of its frames only the newest waits. A tile that ends though the camera is there is opened again.
"""

from __future__ import annotations

import asyncio
import json
import logging
import secrets
from collections.abc import AsyncIterator, Mapping
from itertools import count
from typing import TYPE_CHECKING, Any

from rearview.contract.opening import OpenRequest
from rearview.contract.settings import SettingsChange
from rearview.errors import InvalidRequest, Reason, Refused
from rearview.studio.bell import Bell
from rearview.studio.outbox import Outbox
from rearview.studio.pictures import jpeg_of
from rearview.studio.protocol import Control, FrameIn, Hello, Open
from rearview.studio.wall import Wall

if TYPE_CHECKING:
    from av import VideoFrame

__all__ = ["Camera"]

logger = logging.getLogger(__name__)

TILE = 0
OPEN_S = 20.0
"""How long an offer waits for its session."""
ANSWER_S = 10.0
"""How long a change of settings waits for its answer."""
REOPEN_S = 2.0
"""After which a tile that has ended is opened again."""


class Camera:
    """For one event loop. `close` lets the wall alone, as a page does that is closed."""

    def __init__(self, wall: Wall, options: OpenRequest, *, resumed: bool) -> None:
        """A tile that the wall has already goes on, under the `settings` of these options."""
        self.wall = wall
        self._outbox = Outbox()
        self._credit = self._sent = self._answers = 0
        self._size: tuple[int, int] | None = None
        """Width and height of the frames that the session takes; None: there is none yet."""
        self._num_resizes = 0
        """Changes of that size which the session has not answered."""
        self._state: Mapping[str, Any] = {}
        self._applied: dict[int, asyncio.Future[Mapping[str, Any]]] = {}
        self._ids = count(secrets.randbelow(1 << 52))
        """Of its controls: of those that a camera before it on the wall has asked, answers may still come."""
        self._frame: VideoFrame | None = None
        self._bell = Bell()
        """Rings with everything that it hears and takes."""
        self._tasks: set[asyncio.Task[None]] = set()
        self._is_closed = self._has_opened = False
        self.over = asyncio.Event()
        """The wall has ended, or the camera has failed."""
        wall.attach(self._outbox, Hello(), resumed=resumed, keeps_presets=False)
        self._start(self._hear())
        tile = wall.tiles.get(TILE)
        if tile is None or tile.is_over:
            self._open(options)
        elif options.settings.named():
            wall.control(Control(tile=TILE, id=next(self._ids), settings=options.settings))

    async def opened(self) -> None:
        """Return once its session is there. Raises RearviewError with the service's reason, or the wait's."""
        try:
            async with asyncio.timeout(OPEN_S):
                while not self._is_ready:
                    self._raise_if_refused()
                    await self._bell.wait()
                self._has_opened = True
        except TimeoutError:
            text = "the service is not ready yet"
            raise Refused(Reason.REPLICA_LOST, text, retry_after_s=REOPEN_S) from None

    @property
    def _is_ready(self) -> bool:
        """Whether frames lead to pictures. A tile that rests opens with the next frame."""
        is_fed = self._rests or self._state.get("state") in ("live", "reconnecting")
        return not self._is_closed and not self.over.is_set() and is_fed

    @property
    def _rests(self) -> bool:
        """Whether the tile waits for a frame or a change."""
        return self._state.get("state") == "ended" and self._state.get("reason") == Reason.IDLE.name

    def show(self, frames: AsyncIterator[VideoFrame]) -> None:
        """From now on its frames are these."""
        self._start(self._take(frames))
        self._start(self._send())

    async def change(self, settings: SettingsChange) -> Mapping[str, Any]:
        """Change the session's settings; the `applied` that answers it. Raises InvalidRequest."""
        number, is_resize = next(self._ids), not {"width", "height"}.isdisjoint(settings.named())
        answer = asyncio.get_running_loop().create_future()
        self._applied[number] = answer
        self._num_resizes += is_resize
        try:
            self.wall.control(Control(tile=TILE, id=number, settings=settings))
            async with asyncio.timeout(ANSWER_S):
                applied: Mapping[str, Any] = await answer
        except TimeoutError:
            text = "the change waits for a frame, and none comes"
            raise Refused(Reason.IDLE, text, retry_after_s=REOPEN_S) from None
        finally:
            self._applied.pop(number, None)
            self._num_resizes -= is_resize
            self._bell.ring()
        return applied

    async def close(self) -> None:
        """The camera is gone. The wall keeps its sessions for its grace time. A second time says nothing: by
        then another camera may be there.
        """
        if self._is_closed:
            return
        self._is_closed = True
        self.wall.page.detach(self._outbox, self.wall.now())
        self._bell.ring()
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    # -- what comes back

    async def _hear(self) -> None:
        while (item := await self._outbox.next()) is not None:
            if isinstance(item, bytes):  # a picture: viewers have it
                self._answered()
            else:
                self._understand(json.loads(item))
            self._bell.ring()
        self.over.set()
        self._bell.ring()

    def _understand(self, said: Mapping[str, Any]) -> None:
        match said["type"]:
            case "welcome":
                self._credit = said["credit"]
                for opened in said["tiles"]:
                    self._resize(opened["width"], opened["height"])
            case "credit":
                self._credit = said["frames"]
            case "dropped":
                self._answered()
            case "opened":
                self._resize(said["width"], said["height"])
            case "state":
                self._hear_state(said)
            case "applied":
                settings = said["settings"] or {}
                self._resize(settings.get("width"), settings.get("height"))
                answer = self._applied.get(said["id"])
                if answer is not None and not answer.done():
                    answer.set_result(said)
            case "error":
                logger.warning("a camera: %s (%s)", said["message"], said["reason"])

    def _hear_state(self, said: Mapping[str, Any]) -> None:
        self._state = said
        is_over = said["state"] in ("refused", "ended") and said["reason"] != Reason.IDLE.name
        if is_over and self._has_opened:
            asyncio.get_running_loop().call_later(REOPEN_S, self._reopen)

    def _answered(self) -> None:
        self._answers += 1
        self.wall.received(self._answers)

    def _resize(self, width: int | None, height: int | None) -> None:
        known = self._size or (0, 0)
        size = (width or known[0], height or known[1])
        self._size = size if all(size) else None

    def _open(self, options: OpenRequest) -> None:
        tile = self.wall.tiles.get(TILE)
        if self._is_closed or self.over.is_set() or (tile is not None and not tile.is_over):
            return
        try:
            self.wall.open(Open(tile=TILE, options=options))
        except InvalidRequest as error:  # too many tiles are on their way out
            logger.warning("a camera: %s", error.message)
            asyncio.get_running_loop().call_later(REOPEN_S, self._open, options)

    def _reopen(self) -> None:
        tile = self.wall.tiles.get(TILE)
        if tile is not None:
            self._open(tile.asked)

    def _raise_if_refused(self) -> None:
        state = self._state.get("state")
        if self._is_closed or self.over.is_set():
            raise Refused(Reason.TAKEN_OVER, "another camera has come under this name")
        if state in ("refused", "ended", "queued"):
            retry_ms = self._state["retry_ms"]
            raise Refused(
                Reason[self._state["reason"]],
                self._state["message"],
                retry_after_s=None if retry_ms is None else retry_ms / 1000,
            )

    # -- what the camera sends

    async def _take(self, frames: AsyncIterator[VideoFrame]) -> None:
        """Keep the newest frame; each one takes the place of the one before, which nobody has taken."""
        async for frame in frames:
            self._frame = frame
            self._bell.ring()

    async def _send(self) -> None:
        for number in count():
            while self._frame is None or self._size is None or not self._may_send:
                await self._bell.wait()
            frame, self._frame = self._frame, None
            picture = await asyncio.to_thread(jpeg_of, frame, *self._size)
            self._sent += 1
            try:
                self.wall.take(FrameIn(number, 0.0, picture))
            except InvalidRequest as error:  # the wall is on its way out
                logger.warning("a camera: %s", error.message)

    @property
    def _may_send(self) -> bool:
        """Whether there is credit, and the size will hold."""
        return self._sent < self._credit and (self._rests or not self._num_resizes)

    # -- how

    def _start(self, work: Any) -> None:
        task: asyncio.Task[None] = asyncio.create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._done)

    def _done(self, task: asyncio.Task[None]) -> None:
        self._tasks.discard(task)
        if not task.cancelled() and (failure := task.exception()) is not None:
            logger.error("a camera failed: %s", type(failure).__name__, exc_info=failure)
            self.over.set()
            self._bell.ring()
