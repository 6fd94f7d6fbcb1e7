"""`rearview translate IN OUT`: a file, a folder or a camera, through the service, into a file or a folder."""

from __future__ import annotations

import asyncio
import signal
from dataclasses import dataclass
from enum import StrEnum
from fractions import Fraction
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from rearview.cli.choices import Look, Past, one_of, parse_size
from rearview.cli.failure import fails_in_one_line, interrupt_on_sigterm
from rearview.cli.server import Server, TlsChoice
from rearview.contract.memories import BankPolicy, Rewarm
from rearview.contract.methods import Method
from rearview.contract.settings import Guidance

if TYPE_CHECKING:
    from rearview.cli.progress import Steps
    from rearview.cli.report import Report
    from rearview.cli.translation import Job
    from rearview.client import ControlApplied, Image

__all__ = ["translate"]


PICTURE, METHOD, SERVER, FILES = "Picture", "Method", "Server", "Files"
"""Panels of `--help`."""


class Policy(StrEnum):
    """`--drop-policy`."""

    LOSSLESS = "lossless"
    LATEST = "latest"


class FitChoice(StrEnum):
    """`--fit`."""

    CROP = "crop"
    STRETCH = "stretch"
    PAD = "pad"


def _option(panel: str, help: str, *flags: str, **more: Any) -> Any:
    return typer.Option(*flags, help=help, rich_help_panel=panel, **more)


_picture, _method = partial(_option, PICTURE), partial(_option, METHOD)
_server, _files = partial(_option, SERVER), partial(_option, FILES)


@fails_in_one_line
def translate(
    source: Annotated[str, typer.Argument(metavar="IN", help="A video, a folder of images, or - (camera).")],
    out: Annotated[str, typer.Argument(metavar="OUT", help="A .mp4, .mov or .mkv file, or a folder.")],
    prompt: Annotated[str, _picture("What the pictures shall look like.")],
    strength: Annotated[float | None, _picture("How far from the input, 0 to 1.")] = None,
    steps: Annotated[int | None, _picture("Denoising steps.", min=1)] = None,
    seed: Annotated[int, _picture("Seed of the noise.", min=0)] = 0,
    guidance: Annotated[
        Any,  # A `Guidance`: typer's own choices would be its numbers.
        _picture(
            "self: away from the input; initialize, full: from the negative prompt; none.",
            metavar="<kind>",
            parser=one_of(Guidance),
        ),
    ] = None,
    guidance_scale: Annotated[
        float | None, _picture("How far. Default with --guidance: 1.5.", min=1, max=20)
    ] = None,
    delta: Annotated[
        float | None, _picture("Of guidance self, initialize: less adds grain, more softens.", min=0, max=10)
    ] = None,
    negative_prompt: Annotated[
        str | None, _picture("What they shall not look like (guidance initialize, full).")
    ] = None,
    adapters: Annotated[str | None, _picture("One of the deployment's adapter sets.")] = None,
    size: Annotated[str | None, _picture("WIDTHxHEIGHT. Default: the model's.")] = None,
    fit: Annotated[FitChoice, _picture("How another shape is brought to it.")] = FitChoice.CROP,
    method: Annotated[Method | None, _method("Default: the deployment's.")] = None,
    bank_interval: Annotated[
        int | None, _method("Frames from one write to the feature bank to the next.", min=1)
    ] = None,
    bank_policy: Annotated[
        BankPolicy | None, _method("Merge new features into the bank, or keep the last ones whole.")
    ] = None,
    prompt_change: Annotated[
        Rewarm | None, _method("Of live2diff, at a new prompt: wait, take over later, or keep.")
    ] = None,
    scene_cut: Annotated[Rewarm | None, _method("The same, at a cut to another scene.")] = None,
    instant_start: Annotated[
        bool, _method("Of live2diff: show the first picture at once.", "--instant-start")
    ] = False,
    skip_unchanged: Annotated[
        bool, _method("Repeat the last picture while little changes.", "--skip-unchanged")
    ] = False,
    skip_threshold: Annotated[
        float | None, _method("The same, from this similarity on. Default 0.98.", min=0, max=1)
    ] = None,
    server: Annotated[str | None, _server("host:port. Default: start a service here.")] = None,
    token_file: Annotated[Path | None, _server("File with the tenant's token.")] = None,
    tls: Annotated[bool, _server("Speak TLS.", "--tls")] = False,
    tls_ca: Annotated[Path | None, _server("PEM of who signed the server.")] = None,
    tls_cert: Annotated[Path | None, _server("PEM certificate of this client.")] = None,
    tls_key: Annotated[Path | None, _server("PEM key of --tls-cert.")] = None,
    tls_name: Annotated[str | None, _server("Name in the server's certificate, if not the address.")] = None,
    drop_policy: Annotated[
        Policy | None, _server("Default: lossless for files, latest for a camera.")
    ] = None,
    compare: Annotated[bool, _files("Write input and output side by side.", "--compare")] = False,
    report: Annotated[Path | None, _files("Write figures to this JSON file.")] = None,
    max_frames: Annotated[int | None, _files("Stop after so many frames.", min=1)] = None,
    camera: Annotated[str | None, _files("Camera device, for IN = -.")] = None,
    fps: Annotated[float | None, _files("Of a folder or camera. Default 30.", min=0.1)] = None,
) -> None:
    """Translate a video, a folder of images or a camera. Keeps frame times and the audio track."""
    look = Look(
        prompt=prompt,
        strength=strength,
        steps=steps,
        seed=seed,
        guidance=guidance,
        guidance_scale=guidance_scale,
        delta=delta,
        negative_prompt=negative_prompt,
        adapters=adapters,
    )
    past = Past(
        method=method,
        bank_interval=bank_interval,
        bank_policy=bank_policy,
        prompt_change=prompt_change,
        scene_cut=scene_cut,
        instant_start=instant_start,
        skip_unchanged=skip_unchanged,
        skip_threshold=skip_threshold,
    )
    files = Files(
        source=source,
        out=out,
        size=parse_size(size) if size else None,
        fit=fit,
        compare=compare,
        max_frames=max_frames,
        camera=camera,
        fps=fps,
    )
    choice = TlsChoice(on=tls, ca=tls_ca, cert=tls_cert, key=tls_key, name=tls_name)
    named = Named(address=server, token_file=token_file, tls=choice)
    _translate(files.job(look, past, drop_policy), named, report)


@dataclass(frozen=True, kw_only=True)
class Files:
    """From where to where, and in which shape."""

    source: str
    out: str
    size: tuple[int, int] | None
    """Width and height; None: the model's."""
    fit: FitChoice
    compare: bool
    max_frames: int | None
    camera: str | None
    fps: float | None

    def job(self, look: Look, past: Past, policy: Policy | None) -> Job:
        """What the service is asked to do. Raises MediaError for a source or a target that cannot be."""
        from rearview.cli.translation import Job, options_for
        from rearview.client import DropPolicy
        from rearview.client.media import Fit, open_source
        from rearview.client.media_writer import check_output

        rate = Fraction(self.fps).limit_denominator(1001) if self.fps else None
        opened = open_source(self.source, device=self.camera, frame_rate=rate)
        check_output(self.out)
        options = options_for(opened, DropPolicy[policy.name] if policy else None)
        options.update({**look.options(), **past.options()})
        if self.size is not None:
            options["width"], options["height"] = self.size
        return Job(opened, self.out, options, Fit(self.fit.value), self.compare, self.max_frames)


@dataclass(frozen=True, kw_only=True)
class Named:
    """The server that was named, if one was."""

    address: str | None
    token_file: Path | None
    tls: TlsChoice

    def server(self) -> Server | None:
        """None: one is to be started here. Raises ConfigError for a token that cannot be read."""
        if self.address is None:
            return None
        return Server.named(self.address, self.token_file, self.tls)


def _translate(job: Job, named: Named, report: Path | None) -> None:
    """Run the job, against a service of its own if none was named, and show what it took."""
    from rich.console import Console

    from rearview.cli.progress import show_progress
    from rearview.cli.server import local_config, local_server

    server = named.server()
    interrupt_on_sigterm()
    console = Console(stderr=True)
    with show_progress(console) as progress:
        if server is not None:
            result = _run(server, job, progress)
        else:
            with local_server(local_config(), progress.step) as here:
                result = _run(here, job, progress)
    result.show(console)
    if report is not None:
        result.write(report)
    console.print(f"wrote {job.out}", highlight=False, soft_wrap=True)


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
