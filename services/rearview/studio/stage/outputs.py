"""Where the program goes besides viewers' pages: a camera of this machine, NDI. Each has the newest picture.

An output shows the program of one wall, for as long as that wall's page is there or comes back within
seconds; then of the next one.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from typing import Protocol

from rearview.errors import Refused
from rearview.studio.gateway import Gateway
from rearview.studio.pictures import Part, Picture, mixed
from rearview.studio.said import Trouble
from rearview.studio.wall import Wall
from rearview.studio.watching import Watching

__all__ = ["Output", "showing"]

logger = logging.getLogger(__name__)

LOOK_S = 0.25
"""How often it looks whether its wall is still the one to show; without news it shows a picture again."""
PATIENCE_S = 5.0
"""How long a wall is shown whose page is away: its socket may blink, and it may be loaded again."""


class Output(Protocol):
    """Takes pictures, in a thread, one at a time."""

    name: str
    """For people, as `NDI out`."""

    def send(self, picture: Picture) -> None:
        """Show a picture, (height, width, 3), RGB. Raises OSError once it takes none any more."""

    def close(self) -> None:
        """Nothing more comes."""


@asynccontextmanager
async def showing(
    gateway: Gateway, outputs: Sequence[Output], *, patience_s: float = PATIENCE_S
) -> AsyncIterator[None]:
    """Show the program on all of them until the block ends, and close them. One that fails ends alone."""
    shows = [(_show(gateway, output, patience_s), output.name) for output in outputs]
    tasks = [asyncio.create_task(show, name=name) for show, name in shows]
    try:
        yield
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        for output in outputs:
            await asyncio.to_thread(output.close)


async def _show(gateway: Gateway, output: Output, patience_s: float) -> None:
    watching: Watching | None = None
    try:
        while True:
            wall = _chosen(gateway, None if watching is None else watching.wall, patience_s)
            if watching is not None and wall is not watching.wall:
                watching.leave()
                watching = None
            if wall is None:
                await asyncio.sleep(LOOK_S)
                continue
            try:
                watching = watching or Watching(wall)
            except Refused:  # as many watch as may
                await asyncio.sleep(LOOK_S)
                continue
            if parts := await watching.parts(LOOK_S):
                await _draw(output, parts)
    except OSError as error:
        logger.warning("%s has ended: %s", output.name, error)
        gateway.tell_pages(Trouble(about=output.name, title=f"{output.name} has ended", help=f"{error}."))
    except Exception:
        logger.exception("%s failed", output.name)
    finally:
        if watching is not None:
            watching.leave()


async def _draw(output: Output, parts: Sequence[Part]) -> None:
    try:
        picture = await asyncio.to_thread(mixed, parts)
    except ValueError:  # the model's answers are no pictures
        return
    sending = asyncio.create_task(asyncio.to_thread(output.send, picture))
    try:
        await asyncio.shield(sending)
    except asyncio.CancelledError:  # its thread goes on, and nothing may be closed under it
        await asyncio.gather(sending, return_exceptions=True)
        raise


def _chosen(gateway: Gateway, present: Wall | None, patience_s: float) -> Wall | None:
    """The wall to show: the present one while its page is there, or was so long ago at most, or nobody else
    has a program.
    """
    walls = [wall for wall in gateway.own_walls if wall.viewers.program.tile is not None]
    attended = [wall for wall in walls if wall.page.is_there]
    if present in walls and (not attended or _is_attended(present, patience_s)):
        return present
    return next(iter(attended or walls), None)


def _is_attended(wall: Wall, patience_s: float) -> bool:
    left_s = wall.page.left_s
    return wall.page.is_there or (left_s is not None and wall.now() - left_s < patience_s)
