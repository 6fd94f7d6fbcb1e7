"""`rearview demo`: the whole path on this machine, from the bundled clip to a film beside its input."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from rearview.cli.choices import DeviceOption, ModelOption
from rearview.cli.failure import fails_in_one_line, interrupt_on_sigterm
from rearview.cli.printing import JsonOption, print_json
from rearview.cli.up import TopologyChoice
from rearview.contract.methods import Method

if TYPE_CHECKING:
    from rearview.cli.contact_sheet import Row
    from rearview.cli.progress import Steps
    from rearview.cli.report import Report
    from rearview.cli.server import Server
    from rearview.cli.translation import Job
    from rearview.client import ControlApplied, Image, Opened
    from rearview.errors import Reason

__all__ = ["demo"]

SHOWN_STYLES = ("watercolor", "neon", "pencil", "cartoon")
"""Where the model knows them: they differ most from each other."""
PAIRS_PER_STYLE = 3


@fails_in_one_line
def demo(
    out: Annotated[Path, typer.Option(help="Folder for demo.mp4, demo.png and demo.json.")] = Path("out"),
    style: Annotated[
        list[str] | None, typer.Option(help="Style of the model, or any prompt. Repeat it for several.")
    ] = None,
    topology: Annotated[
        TopologyChoice, typer.Option(help="How the chain is cut into replicas.")
    ] = TopologyChoice.PIPELINE,
    method: Annotated[Method, typer.Option(help="What relates a frame to those before it.")] = (
        Method.PER_FRAME
    ),
    frames: Annotated[int, typer.Option(help="Frames to translate.", min=1)] = 120,
    blend_frames: Annotated[
        int, typer.Option(help="Frames over which a style becomes the next.", min=0, max=10_000)
    ] = 0,
    model: ModelOption = None,
    device: DeviceOption = "auto",
    as_json: JsonOption = False,
) -> None:
    """Start the service, translate the bundled clip in several styles, and show the figures."""
    from rearview.forks import begin_imports

    begin_imports()
    from rich.console import Console

    from rearview.cli.contact_sheet import write_contact_sheet
    from rearview.cli.model_choice import RUN_SESSIONS, model_config
    from rearview.cli.progress import show_progress
    from rearview.cli.server import local_server
    from rearview.client.media import open_source
    from rearview.contract.card import ModelCard
    from rearview.samples import sample_clip_path

    interrupt_on_sigterm()
    _make_folder(out)
    config = model_config(model, topology=topology.value, device=device, sessions=RUN_SESSIONS)
    prompts = choose_prompts(ModelCard.read(config.model.checkpoint).styles, style or [])
    source = open_source(str(sample_clip_path()))
    total = min(frames, source.num_frames or frames)
    starts = segment_starts(total, len(prompts))
    console = Console(stderr=True)
    with show_progress(console) as progress:
        watcher = _Demo(progress, total, list(prompts), starts)
        job = _job(source, out, list(prompts.values()), starts, total, method, blend_frames)
        with local_server(config, progress.step) as server:
            report = _run(server, job, watcher)
        progress.step("writing the contact sheet")
        write_contact_sheet(out / "demo.png", watcher.rows)
    watcher.check()
    report.write(out / "demo.json")
    if as_json:
        print_json(report.as_dict())
        return
    report.show(console)
    console.print(
        f"service ready after {report.service_ready_s:.1f} s, "
        f"topology {topology.value}, method {method.value}; "
        f"wrote {out / 'demo.mp4'}, {out / 'demo.png'}, {out / 'demo.json'}",
        highlight=False,
        soft_wrap=True,
    )


def _make_folder(out: Path) -> None:
    """Raises ConfigError."""
    from rearview.errors import ConfigError

    try:
        out.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ConfigError(f"--out {out}: {error.strerror}") from None
    if not os.access(out, os.W_OK):
        raise ConfigError(f"--out {out}: nothing can be written there")


def choose_prompts(styles: Mapping[str, str], wanted: Sequence[str]) -> dict[str, str]:
    """Label to prompt: of `wanted` (a style's name or any prompt), else of the styles to show."""
    if wanted:
        return {name: styles.get(name, name) for name in wanted}
    shown = [name for name in SHOWN_STYLES if name in styles] or list(styles)[: len(SHOWN_STYLES)]
    return {name: styles[name] for name in shown} or {name: f"a {name} picture" for name in SHOWN_STYLES}


def segment_starts(total: int, segments: int) -> list[int]:
    """The first frames of up to `segments` parts of nearly equal length, each of at least one frame."""
    segments = min(segments, total)
    return [total * number // segments for number in range(segments)]


def _job(
    source: object,
    out: Path,
    prompts: list[str],
    starts: list[int],
    total: int,
    method: Method,
    blend_frames: int,
) -> Job:
    from rearview.cli.cues import Cue
    from rearview.cli.translation import Job, options_for
    from rearview.client import SettingsChange
    from rearview.client.media import VideoSource
    from rearview.client.targets import open_target

    assert isinstance(source, VideoSource)
    options = options_for(source, None)
    options["prompt"], options["method"] = prompts[0], method
    options["blend_frames"] = blend_frames
    changes = zip(starts[1:], prompts[1:], strict=False)
    cues = [Cue(change=SettingsChange(prompt=prompt), frame=start) for start, prompt in changes]
    target = open_target(str(out / "demo.mp4"), source)
    return Job(source, target, options, compare=True, max_frames=total, cues=cues)


def _run(server: Server, job: Job, watcher: _Demo) -> Report:
    from rearview.cli.report import Report
    from rearview.cli.server import connect
    from rearview.cli.translation import run_job

    report = Report(service_ready_s=server.ready_s)

    async def work() -> None:
        async with connect(server, patience_s=10.0) as client:
            await run_job(client, job, watcher, report)

    asyncio.run(work())
    return report


class _Demo:
    """Shows progress and keeps the samples for the contact sheet."""

    def __init__(self, progress: Steps, total: int, labels: list[str], starts: list[int]) -> None:
        from rearview.cli.contact_sheet import Row

        self._progress, self._total, self._starts = progress, total, starts
        ends = [*starts[1:], total]
        self.rows: list[Row] = [
            Row(f"{label}   (frames {start} to {end - 1}: input | output)")
            for label, start, end in zip(labels, starts, ends, strict=False)
        ]
        self._sampled = {
            sample: row
            for row, start, end in zip(self.rows, starts, ends, strict=True)
            for sample in sample_frames(start, end)
        }
        self._labels = labels
        self._rejected: Reason | None = None

    def opened(self, opened: Opened) -> None:
        self._progress.begin("translating", self._total)

    def control(self, applied: ControlApplied) -> None:
        self._rejected = applied.rejected_reason or self._rejected

    def picture(self, number: int, source: Image, result: Image) -> None:
        if number in self._starts[1:]:
            self._progress.step(f"translating: {self._labels[self._starts.index(number)]}")
        if number in self._sampled:
            self._sampled[number].pairs.append((source, result))
        self._progress.advance()

    def check(self) -> None:
        """Raises InvalidRequest if a change of style was refused."""
        from rearview.errors import InvalidRequest

        if self._rejected is not None:
            raise InvalidRequest(self._rejected, "the service has refused a style")


def sample_frames(start: int, end: int) -> list[int]:
    """Up to `PAIRS_PER_STYLE` frames of [start, end), spread, the first and last ones left out."""
    spread = [start + (end - start) * (2 * k + 1) // (2 * PAIRS_PER_STYLE) for k in range(PAIRS_PER_STYLE)]
    return sorted(set(spread))
