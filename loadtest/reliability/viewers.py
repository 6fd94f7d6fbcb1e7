"""Sessions of a model that makes pictures, and what their clients have seen: times, pictures, notices."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Any

import numpy as np
from rearview.client import Client, Dropped, DropPolicy, ImageFormat, Notice, Translated
from rearview.errors import RearviewError

__all__ = ["SIDE", "Seen", "Viewer", "difference", "picture"]

SIDE = 64
"""Pixels: the smallest that the bundled model takes."""
BLOCKS = 8


def picture(index: int) -> bytes:
    """Frame `index` of the clip that all viewers send: coloured blocks that drift, and change slowly."""
    at = np.arange(BLOCKS)
    phase = (at[:, None] + at[None, :] + 0.25 * index)[..., None] + np.array([0.0, 2.0, 4.0])
    blocks = (127.5 + 127.5 * np.sin(0.8 * phase)).astype(np.uint8)
    return np.repeat(np.repeat(blocks, SIDE // BLOCKS, axis=0), SIDE // BLOCKS, axis=1).tobytes()


def difference(one: bytes, other: bytes) -> float:
    """Of two pictures: mean over pixels and colours, of 255."""
    first, second = (np.frombuffer(each, np.uint8).astype(np.int16) for each in (one, other))
    return float(np.abs(first - second).mean())


@dataclass
class Seen:
    """What one session has seen. Monotonic seconds."""

    session_id: str = ""
    sent_s: dict[int, float] = field(default_factory=dict)
    pictures: dict[int, bytes] = field(default_factory=dict)
    came_s: dict[int, float] = field(default_factory=dict)
    round_trips_s: list[float] = field(default_factory=list)
    said: list[tuple[float, str]] = field(default_factory=list)
    """Continuities that it was told of, and when."""
    dropped: int = 0
    error: str = ""

    def back_s(self, since_s: float) -> float | None:
        """From then to the first picture of a frame that was sent after it."""
        later = [came for index, came in self.came_s.items() if self.sent_s[index] > since_s]
        return min(later) - since_s if later else None

    def gaps_s(self, begin_s: float, end_s: float) -> list[float]:
        """Between answers, of those that came in that time."""
        times = sorted(self.came_s.values())
        return [b - a for a, b in pairwise(times) if begin_s <= b and a <= end_s]

    def broken(self, reference: Sequence[bytes]) -> tuple[int, float]:
        """Pictures that differ from the reference while only EXACT was said, and the largest difference once
        APPROXIMATE was.
        """
        inexact_s = min((when for when, what in self.said if what != "exact"), default=float("inf"))
        differ, worst = 0, 0.0
        for index, content in self.pictures.items():
            if self.came_s[index] >= inexact_s:
                worst = max(worst, difference(content, reference[index]))
            else:
                differ += content != reference[index]
        return differ, worst


class Viewer:
    """One session: frames on a clock of their own, until it is told to stop."""

    def __init__(self, address: str, options: dict[str, Any], rate: float) -> None:
        """`options`: what `Client.open` is to be asked for beside pictures; `rate`: frames a second; 0: as
        fast as they are taken.
        """
        self._address, self._options, self._rate = address, options, rate
        self.seen = Seen()
        self._stop = asyncio.Event()
        self.is_open = asyncio.Event()

    def stop(self) -> None:
        """No frame more; `watch` returns once all are answered."""
        self._stop.set()

    async def watch(self, frames: int | None = None) -> Seen:
        """Send `frames`, or until told to stop, and read to the end."""
        try:
            async with (
                Client(self._address) as client,
                client.open(
                    prompt="a harbour",
                    width=SIDE,
                    height=SIDE,
                    drop_policy=DropPolicy.LOSSLESS,
                    answer_format=ImageFormat.RGB,
                    frame_rate=self._rate or 30.0,
                    **self._options,
                ) as session,
            ):
                self.seen.session_id = session.opened.session_id
                self.is_open.set()
                async with asyncio.TaskGroup() as both:
                    both.create_task(self._send(session, frames))
                    both.create_task(self._read(session))
        except* RearviewError as errors:
            self.seen.error = str(errors.exceptions[0])
        finally:
            self.is_open.set()
        return self.seen

    async def _send(self, session: Any, frames: int | None) -> None:
        start_s, index = time.monotonic(), 0
        while not self._stop.is_set() and (frames is None or index < frames):
            if self._rate:
                await asyncio.sleep(max(0.0, start_s + index / self._rate - time.monotonic()))
            self.seen.sent_s[index] = time.monotonic()
            await session.send(picture(index), index=index, format=ImageFormat.RGB)
            index += 1
        await session.finish()

    async def _read(self, session: Any) -> None:
        async for answer in session:
            now = time.monotonic()
            match answer:
                case Translated():
                    self.seen.pictures[answer.frame_index] = bytes(answer.data)
                    self.seen.came_s[answer.frame_index] = now
                    self.seen.round_trips_s.append(answer.round_trip_s)
                case Dropped():
                    self.seen.dropped += 1
                case Notice() if answer.continuity is not None:
                    self.seen.said.append((now, answer.continuity.value))
