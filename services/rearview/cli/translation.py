"""A source through a session into a writer: what `translate` and `demo` share.

    source ─► feed ─► session ─► answers ─► PictureSink ─► writer

Pictures of the source wait for their answers, so that a drop repeats the picture before it at its own time
and a comparison can stand beside its input. How many wait is bounded by the server's credit.
"""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Generator, Iterator, Mapping, Sequence
from contextlib import ExitStack, closing, contextmanager
from dataclasses import dataclass, field
from fractions import Fraction
from itertools import repeat
from typing import Protocol

from rearview.cli.cues import Cue, Schedule
from rearview.cli.report import Report
from rearview.cli.sizing import shaped_options
from rearview.client import (
    Client,
    ControlApplied,
    Dropped,
    DropPolicy,
    Frame,
    Image,
    Opened,
    OpenOptions,
    SettingsChange,
    Translated,
    exchange,
)
from rearview.client.media import Fit, MediaError, Picture, Source
from rearview.client.media_writer import Film, Writer, side_by_side
from rearview.client.targets import Target
from rearview.errors import InvalidRequest

__all__ = ["Job", "PictureSink", "Watcher", "options_for", "run_job"]


FLAT = 2.0
"""Contrast, levels of 255, below which a picture shows nothing. JPEG alone leaves less."""


class Watcher(Protocol):
    """Told of what happens; every method may do nothing."""

    def opened(self, opened: Opened) -> None:
        """The session is open."""

    def control(self, applied: ControlApplied) -> None:
        """A control was answered."""

    def picture(self, number: int, source: Image, result: Image) -> None:
        """Picture `number` was written."""


@dataclass(frozen=True)
class Job:
    """One translation."""

    source: Source
    target: Target
    options: OpenOptions
    fit: Fit = Fit.CROP
    compare: bool = False
    """Write input and output side by side."""
    max_frames: int | None = None
    cues: Sequence[Cue] = ()
    """When settings change; of those at one frame the later ones win."""
    controls: Mapping[str, Source] = field(default_factory=dict)
    """By name of a ControlNet, where its pictures come from: one for each frame, as long as there are any."""


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
        self.count = 0
        """Pictures written."""
        self._flat = 0
        """Of them: without anything to see, where the source had something."""
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

    @property
    def is_flat(self) -> bool:
        """Whether all pictures are of one colour, and those of the source are not."""
        return 0 < self.count == self._flat

    def _write(self, image: Image, source: Picture) -> None:
        self._writer.write(side_by_side(source.image, image) if self._compare else image, source)
        self._flat += _contrast(image) < FLAT <= _contrast(source.image)
        self._watcher.picture(self.count, source.image, image)
        self.count += 1


async def run_job(client: Client, job: Job, watcher: Watcher, report: Report) -> None:
    """Run `job` to the last answer. What was answered is in a finished file, also after an error:
    `report.output` says where.

    Raises MediaError, and RearviewError of the session or of a change that is refused.
    """
    report.started_s = time.monotonic()
    report.is_lossless = job.options.get("drop_policy") is DropPolicy.LOSSLESS
    async with client.open(**await _options(client, job)) as session:
        report.session = opened = session.opened
        watcher.opened(opened)
        waiting: dict[int, Picture] = {}
        schedule = Schedule(job.cues)
        with _output(job, opened, watcher, report) as sink:
            try:
                feed = _feed(job, opened.width, opened.height, waiting, schedule)
                async for answer in exchange(session, feed):
                    if isinstance(answer, ControlApplied):
                        watcher.control(answer)
                        _check_applied(answer)
                    elif isinstance(answer, Translated | Dropped):
                        report.record(answer, time.monotonic())
                        await asyncio.to_thread(sink.settle, answer, waiting.pop(answer.frame_index))
            finally:
                report.num_connections = session.num_connections
            _check_pictures(job, sink, report)
        report.unreached = tuple(cue.moment for cue in schedule.waiting)


async def _options(client: Client, job: Job) -> OpenOptions:
    """With the size that they name, else in the shape of the source, or of the model's own size."""
    if job.fit is Fit.KEEP and not job.options.get("width"):
        return await shaped_options(client, job.options, job.source.size)
    return job.options


@contextmanager
def _output(job: Job, opened: Opened, watcher: Watcher, report: Report) -> Iterator[PictureSink]:
    """Where the pictures go. They get the target's name if the block ends without an error."""
    film = Film.like(job.source, opened.width * 2 if job.compare else opened.width, opened.height)
    sink = PictureSink(job.target.open(film), watcher, compare=job.compare)
    is_whole = False
    try:
        yield sink
        sink.close(is_complete=job.max_frames is None)
        is_whole = True
    finally:
        try:
            sink.close(is_complete=False)
        finally:
            report.num_written, report.output = sink.count, job.target.settle(is_whole=is_whole)


def _check_pictures(job: Job, sink: PictureSink, report: Report) -> None:
    """Raises MediaError if there is nothing to see."""
    if report.translated == 0:
        drops = ", ".join(f"{count} dropped ({reason})" for reason, count in report.dropped.items())
        raise MediaError(f"{job.source.name}: no frame was translated{': ' if drops else ''}{drops}")
    if sink.is_flat:
        text = "every picture is of one colour: the weights are broken, or parts do not belong together"
        raise MediaError(f"{job.source.name}: {text} (`rearview models verify` looks closer)")


def _contrast(image: Image) -> float:
    """Levels of 255; of a part of the pixels."""
    return float(image[::8, ::8].std(axis=(0, 1)).max())


def _check_applied(applied: ControlApplied) -> None:
    """Raises InvalidRequest if the change was refused."""
    if applied.rejected_reason is not None:
        text = f"the change at frame {applied.received_frames} was refused: {applied.advice}"
        raise InvalidRequest(applied.rejected_reason, text)


def _feed(
    job: Job, width: int, height: int, waiting: dict[int, Picture], schedule: Schedule
) -> Iterator[Frame | SettingsChange]:
    """The source's frames with the changes between them; runs in a thread."""
    with ExitStack() as opened:
        sent = {
            name: opened.enter_context(closing(_shown(source, width, height, job.fit)))
            for name, source in job.controls.items()
        }
        for number, picture in enumerate(job.source.pictures(width, height, job.fit)):
            yield from schedule.due(number, picture.presentation_s)
            waiting[number] = picture
            shown = {name: image for name, each in sent.items() if (image := next(each, None)) is not None}
            yield Frame(picture.image, picture.presentation_s, number, controls=shown)
            if number + 1 == job.max_frames:
                return


def _shown(source: Source, width: int, height: int, fit: Fit) -> Generator[Image, None, None]:
    """What a control is shown of each frame; a single picture of all. After the last one nothing."""
    pictures = source.pictures(width, height, fit)
    first, second = next(pictures, None), next(pictures, None)
    if first is not None and second is None:
        yield from repeat(first.image)
    for picture in (first, second):
        if picture is not None:
            yield picture.image
    for picture in pictures:
        yield picture.image


def options_for(source: Source, policy: DropPolicy | None) -> OpenOptions:
    """Lossless for files, which take the time they take; the newest picture for a camera."""
    policy = policy or (DropPolicy.LATEST if source.is_live else DropPolicy.LOSSLESS)
    rate = Fraction(1) if policy is DropPolicy.LOSSLESS else source.frame_rate
    return {"drop_policy": policy, "frame_rate": float(rate)}
