"""`rearview translate IN OUT`: a file, a folder or a camera, through the service, into a file or a folder."""

from __future__ import annotations

import asyncio
import signal
from enum import StrEnum
from fractions import Fraction
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from rearview.cli.failure import fails_in_one_line, interrupt_on_sigterm

if TYPE_CHECKING:
    from rearview.cli.progress import Steps
    from rearview.cli.report import Report
    from rearview.cli.server import Server
    from rearview.cli.translation import Job
    from rearview.client import ControlApplied, Image

__all__ = ["MethodChoice", "translate"]


class Policy(StrEnum):
    """`--drop-policy`."""

    LOSSLESS = "lossless"
    LATEST = "latest"


class MethodChoice(StrEnum):
    """`--method`."""

    PER_FRAME = "per-frame"
    STREAMV2V = "streamv2v"


class FitChoice(StrEnum):
    """`--fit`."""

    CROP = "crop"
    STRETCH = "stretch"
    PAD = "pad"


def parse_size(text: str) -> tuple[int, int]:
    """ "256x192" as (256, 192). Raises BadParameter."""
    width, _, height = text.lower().partition("x")
    if not (width.isdigit() and height.isdigit() and int(width) and int(height)):
        raise typer.BadParameter(f"{text!r} is no size; write WIDTHxHEIGHT, such as 256x256")
    if int(width) % 8 or int(height) % 8:
        raise typer.BadParameter(f"{text}: width and height must be multiples of 8")
    return int(width), int(height)


@fails_in_one_line
def translate(
    source: Annotated[str, typer.Argument(metavar="IN", help="A video, a folder of images, or - (camera).")],
    out: Annotated[str, typer.Argument(metavar="OUT", help="A .mp4, .mov or .mkv file, or a folder.")],
    prompt: Annotated[str, typer.Option(help="What the pictures shall look like.")],
    strength: Annotated[float | None, typer.Option(help="How far from the input, 0 to 1.")] = None,
    steps: Annotated[int | None, typer.Option(help="Denoising steps.", min=1)] = None,
    seed: Annotated[int, typer.Option(help="Seed of the noise.", min=0)] = 0,
    method: Annotated[MethodChoice | None, typer.Option(help="Default: the deployment's.")] = None,
    size: Annotated[str | None, typer.Option(help="WIDTHxHEIGHT. Default: the model's.")] = None,
    fit: Annotated[FitChoice, typer.Option(help="How another shape is brought to it.")] = FitChoice.CROP,
    compare: Annotated[bool, typer.Option(help="Write input and output side by side.")] = False,
    server: Annotated[str | None, typer.Option(help="host:port. Default: start a service here.")] = None,
    token_file: Annotated[Path | None, typer.Option(help="File with the tenant's token.")] = None,
    tls: Annotated[bool, typer.Option(help="Speak TLS.")] = False,
    tls_ca: Annotated[Path | None, typer.Option(help="PEM of who signed the server.")] = None,
    drop_policy: Annotated[
        Policy | None, typer.Option(help="Default: lossless for files, latest for a camera.")
    ] = None,
    report: Annotated[Path | None, typer.Option(help="Write figures to this JSON file.")] = None,
    max_frames: Annotated[int | None, typer.Option(help="Stop after so many frames.", min=1)] = None,
    camera: Annotated[str | None, typer.Option(help="Camera device, for IN = -.")] = None,
    fps: Annotated[float | None, typer.Option(help="Of a folder or camera. Default 30.", min=0.1)] = None,
) -> None:
    """Translate a video, a folder of images or a camera. Keeps frame times and the audio track."""
    from rich.console import Console

    from rearview.cli.progress import show_progress
    from rearview.cli.server import Server, local_config, local_server
    from rearview.cli.translation import Job, options_for
    from rearview.client import DropPolicy, Method
    from rearview.client.media import Fit, open_source

    if not prompt.strip():
        raise typer.BadParameter("is empty", param_hint="--prompt")
    dimensions = parse_size(size) if size else None
    rate = Fraction(fps).limit_denominator(1001) if fps else None
    opened = open_source(source, device=camera, frame_rate=rate)
    options = options_for(opened, DropPolicy[drop_policy.name] if drop_policy else None)
    options["prompt"], options["seed"] = prompt, seed
    if strength is not None:
        options["strength"] = strength
    if steps is not None:
        options["steps"] = steps
    if method is not None:
        options["method"] = Method[method.name]
    if dimensions is not None:
        options["width"], options["height"] = dimensions
    job = Job(opened, out, options, Fit(fit.value), compare, max_frames)
    interrupt_on_sigterm()
    console = Console(stderr=True)
    with show_progress(console) as progress:
        if server is not None:
            result = _run(Server.named(server, token_file, tls, tls_ca), job, progress)
        else:
            with local_server(local_config(), progress.step) as here:
                result = _run(here, job, progress)
    result.show(console)
    if report is not None:
        result.write(report)
    console.print(f"wrote {out}", highlight=False, soft_wrap=True)


def _run(server: Server, job: Job, progress: Steps) -> Report:
    from rearview.cli.report import Report
    from rearview.cli.server import connect
    from rearview.cli.translation import run_job

    report = Report(service_ready_s=server.ready_s)
    _stop_camera_on_interrupt(job)

    async def work() -> None:
        async with connect(server) as client:
            await run_job(client, job, _Shown(progress, job), report)

    asyncio.run(work())
    return report


def _stop_camera_on_interrupt(job: Job) -> None:
    """The first Ctrl-C ends a camera's video in order; the second one ends the command."""
    from rearview.client.media import CameraSource

    source = job.source
    if not isinstance(source, CameraSource):
        return

    def stop(number: int, frame: object) -> None:
        source.stop()
        signal.signal(signal.SIGINT, signal.default_int_handler)

    signal.signal(signal.SIGINT, stop)


class _Shown:
    """Shows a job's progress."""

    def __init__(self, progress: Steps, job: Job) -> None:
        self._progress, self._job = progress, job

    def opened(self, advice: str) -> None:
        counts = [count for count in (self._job.source.num_frames, self._job.max_frames) if count]
        if advice:
            self._progress.step(f"note: {advice}")
        self._progress.begin(f"translating {self._job.source.name}", min(counts) if counts else None)

    def control(self, applied: ControlApplied) -> None:
        pass

    def picture(self, number: int, source: Image, result: Image) -> None:
        self._progress.advance()
