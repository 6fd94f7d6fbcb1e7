"""One run of `translate`: the service for it, what is told on the way, and what is there at the end."""

from __future__ import annotations

import asyncio
import signal
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from rearview.cli.failure import interrupt_on_sigterm
from rearview.cli.printing import print_json
from rearview.cli.server import Named, Server
from rearview.cli.words import counted

if TYPE_CHECKING:
    from rearview.cli.progress import Steps
    from rearview.cli.report import Report
    from rearview.cli.translation import Job
    from rearview.client import ControlApplied, Image, Opened
    from rearview.config import ServiceConfig

__all__ = ["run_translation"]


def run_translation(
    job: Job, named: Named, report: Path | None, model: str | None, device: str, *, as_json: bool = False
) -> None:
    """Run the job, against a service of its own, of `model` on `device`, if none was named, and show what it
    took.
    """
    from rich.console import Console

    from rearview.cli.model_choice import config_for
    from rearview.cli.progress import show_progress
    from rearview.cli.report import Report
    from rearview.cli.server import local_server

    server, result = named.server(), Report()
    changes = (cue.change for cue in job.cues)
    own = config_for(model, job.options, device, changes) if server is None else None
    interrupt_on_sigterm()
    console = Console(stderr=True)
    try:
        with show_progress(console) as progress:
            if server is not None:
                _run(server, job, progress, result)
            else:
                assert own is not None
                config, job = _sized(own, job)
                with local_server(config, progress.step) as here:
                    _run(here, job, progress, result)
    except BaseException as error:
        if result.output:
            are = "is" if result.num_written == 1 else "are"
            error.add_note(f"{counted(result.num_written, 'picture')} {are} kept in {result.output}")
        raise
    if report is not None:
        result.write(report)
    if as_json:
        print_json(result.as_dict())
        return
    result.show(console)
    console.print(f"wrote {result.output}", highlight=False, markup=False, soft_wrap=True)


def _sized(config: ServiceConfig, job: Job) -> tuple[ServiceConfig, Job]:
    """A service for sessions of the job's size, and the job with that size. Raises BadParameter."""
    from rearview.cli.sizing import check_size, room_of, sized_for
    from rearview.client.fitting import Fit

    room = room_of(config)
    width, height = job.options.get("width"), job.options.get("height")
    if width and height:
        check_size((width, height), room, config.limits.max_pixels)
    elif job.fit is Fit.KEEP:
        width, height = room.snapped(job.source.size)
    else:
        return config, job
    sized = replace(job, options={**job.options, "width": width, "height": height})
    return sized_for(config, (width, height)), sized


def _run(server: Server, job: Job, progress: Steps, report: Report) -> None:
    from rearview.cli.server import connect
    from rearview.cli.translation import run_job

    report.service_ready_s = server.ready_s
    _stop_live_source_on_interrupt(job)

    async def work() -> None:
        async with connect(server) as client:
            await run_job(client, job, _Shown(progress, job), report)

    asyncio.run(work())
    for moment in report.unreached:
        progress.note(f"note: the video ended before the change at {moment}")


def _stop_live_source_on_interrupt(job: Job) -> None:
    """The first Ctrl-C ends the video of a camera in order; the second one ends the command."""
    from rearview.client.media import LiveSource

    source = job.source
    if not isinstance(source, LiveSource):
        return

    def stop(number: int, frame: object) -> None:
        source.stop()
        signal.signal(signal.SIGINT, signal.default_int_handler)

    signal.signal(signal.SIGINT, stop)


class _Shown:
    """Shows a job's progress."""

    def __init__(self, progress: Steps, job: Job) -> None:
        self._progress, self._job = progress, job
        self._advice = ""

    def opened(self, opened: Opened) -> None:
        from rearview.client.fitting import told_fit

        source = self._job.source
        self._progress.note(told_fit(source.size, (opened.width, opened.height), self._job.fit))
        self._advise(opened.advice)
        counts = [count for count in (source.num_frames, self._job.max_frames) if count]
        self._progress.begin(f"translating {source.name}", min(counts) if counts else None)

    def control(self, applied: ControlApplied) -> None:
        self._advise(applied.advice if applied.rejected_reason is None else "")

    def picture(self, number: int, source: Image, result: Image) -> None:
        self._progress.advance()

    def _advise(self, advice: str) -> None:
        """Once, though a schedule may come back to a prompt."""
        if advice and advice != self._advice:
            self._progress.note(f"note: {advice}")
        self._advice = advice
