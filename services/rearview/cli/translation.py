"""A source through a session into a writer: what `translate` and `demo` share.

    source ─► feed ─► session ─► answers ─► PictureSink ─► writer

Pictures of the source wait for their answers, so that a drop repeats the picture before it at its own time
and a comparison can stand beside its input. How many wait is bounded by the server's credit.
"""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from fractions import Fraction
from typing import Protocol

from rearview.cli.report import Report
from rearview.client import (
    Client,
    ControlApplied,
    Dropped,
    DropPolicy,
    Frame,
    Image,
    OpenOptions,
    SettingsChange,
    Translated,
    exchange,
)
from rearview.client.media import Fit, MediaError, Picture, Source
from rearview.client.media_writer import Writer, open_writer, side_by_side

__all__ = ["Job", "PictureSink", "Watcher", "options_for", "run_job"]


class Watcher(Protocol):
    """Told of what happens; every method may do nothing."""

    def opened(self, advice: str) -> None:
        """The session is open."""

    def control(self, applied: ControlApplied) -> None:
        """A control was answered."""

    def picture(self, number: int, source: Image, result: Image) -> None:
        """Picture `number` was written."""


@dataclass(frozen=True)
class Job:
    """One translation."""

    source: Source
    out: str
    options: OpenOptions
    fit: Fit = Fit.CROP
    compare: bool = False
    """Write input and output side by side."""
    max_frames: int | None = None
    controls: Mapping[int, SettingsChange] = field(default_factory=dict)
    """Number of a frame to the settings from it on."""


class PictureSink:
    """Writes a picture for every frame of the source: its own, or for a drop the one before.

    `settle` runs in worker threads, one at a time; `close` waits for it, since a cancelled task leaves its
    thread running.
    """

    def __init__(self, writer: Writer, watcher: Watcher, *, compare: bool) -> None:
        self._writer, self._watcher, self._compare = writer, watcher, compare
        self._former: Image | None = None
        self._without: list[Picture] = []
        """Dropped before there was any picture: they get the first one."""
        self._count = 0
        self._lock = threading.Lock()
        self._is_closed = False

    def settle(self, answer: Translated | Dropped, source: Picture) -> None:
        """Write what `answer` means for the frame `source`."""
        with self._lock:
            if self._is_closed:
                return
            if isinstance(answer, Translated):
                self._former = answer.image
            if self._former is None:
                self._without.append(source)
                return
            for picture in (*self._without, source):
                self._write(self._former, picture)
            self._without.clear()

    def close(self, *, is_complete: bool) -> None:
        """Finish the output."""
        with self._lock:
            if not self._is_closed:
                self._is_closed = True
                self._writer.close(is_complete=is_complete)

    def _write(self, image: Image, source: Picture) -> None:
        self._writer.write(side_by_side(source.image, image) if self._compare else image, source)
        self._watcher.picture(self._count, source.image, image)
        self._count += 1


async def run_job(client: Client, job: Job, watcher: Watcher, report: Report) -> None:
    """Run `job` to the last answer. What was answered is in a finished file, also after an error.

    Raises MediaError, and RearviewError of the session.
    """
    report.started_s = time.monotonic()
    report.is_lossless = job.options.get("drop_policy") is DropPolicy.LOSSLESS
    async with client.open(**job.options) as session:
        report.session = opened = session.opened
        watcher.opened(opened.advice)
        writer = _open_writer(job, opened.width, opened.height)
        sink = PictureSink(writer, watcher, compare=job.compare)
        waiting: dict[int, Picture] = {}
        is_complete = False
        try:
            feed = _feed(job, opened.width, opened.height, waiting)
            async for answer in exchange(session, feed):
                if isinstance(answer, ControlApplied):
                    watcher.control(answer)
                elif isinstance(answer, Translated | Dropped):
                    report.record(answer, time.monotonic())
                    await asyncio.to_thread(sink.settle, answer, waiting.pop(answer.frame_index))
            is_complete = job.max_frames is None
        finally:
            report.num_connections = session.num_connections
            sink.close(is_complete=is_complete)
    if report.translated == 0:
        raise MediaError(f"{job.source.name}: no frame was translated ({dict(report.dropped)})")


def _feed(job: Job, width: int, height: int, waiting: dict[int, Picture]) -> Iterator[Frame | SettingsChange]:
    """The source's frames with the controls between them; runs in a thread."""
    for number, picture in enumerate(job.source.pictures(width, height, job.fit)):
        if number in job.controls:
            yield job.controls[number]
        waiting[number] = picture
        yield Frame(picture.image, picture.presentation_s, number)
        if number + 1 == job.max_frames:
            return


def _open_writer(job: Job, width: int, height: int) -> Writer:
    source = job.source
    return open_writer(
        job.out,
        width * 2 if job.compare else width,
        height,
        frame_rate=source.frame_rate,
        time_base=source.time_base,
        audio_path=source.audio_path,
    )


def options_for(source: Source, policy: DropPolicy | None) -> OpenOptions:
    """Lossless for files, which take the time they take; the newest picture for a camera."""
    policy = policy or (DropPolicy.LATEST if source.is_live else DropPolicy.LOSSLESS)
    rate = Fraction(1) if policy is DropPolicy.LOSSLESS else source.frame_rate
    return {"drop_policy": policy, "frame_rate": float(rate)}
