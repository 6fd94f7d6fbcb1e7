"""`rearview plan`: how many GPUs so many live streams need, by the service's own code in virtual time."""

from __future__ import annotations

from dataclasses import asdict
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from rearview.cli.choices import parse_size
from rearview.cli.failure import fails_in_one_line
from rearview.cli.printing import JsonOption, print_json, table_console

if TYPE_CHECKING:
    from rearview.config import ServiceConfig
    from rearview.planning.sizing import Answer, Question

__all__ = ["plan"]

MAX_STREAMS = 20_000
MAX_JITTER_S = 0.01
PLOT = 40
"""Columns."""


class TraceChoice(StrEnum):
    """Who comes when."""

    STEADY = "steady"
    DIURNAL = "diurnal"
    FLASH_CROWD = "flash-crowd"
    NODE_LOSS = "node-loss"


@fails_in_one_line
def plan(
    streams: Annotated[
        int, typer.Argument(help="Live streams at a time, at the peak.", min=1, max=MAX_STREAMS)
    ],
    config: Annotated[
        Path | None, typer.Option("--config", "-c", help="A deployment file, such as deploy/*.yaml.")
    ] = None,
    costs: Annotated[
        Path | None,
        typer.Option(help="Seconds of forwards, JSON: see docs/planning.md. Without: a measured H200, sd15."),
    ] = None,
    fps: Annotated[float, typer.Option(help="Frames per second of a stream.", min=1.0, max=240.0)] = 15.0,
    steps: Annotated[
        int | None, typer.Option(help="Denoising steps. Without: the deployment's most, or 2.", min=1, max=50)
    ] = None,
    size: Annotated[
        str | None, typer.Option(help="WIDTHxHEIGHT. Without: the deployment's, or 512x512.")
    ] = None,
    slo_ms: Annotated[
        float, typer.Option(help="A picture is in time within so many ms.", min=1.0, max=60_000.0)
    ] = 200.0,
    trace: Annotated[TraceChoice, typer.Option(help="Who comes when.")] = TraceChoice.STEADY,
    hours: Annotated[float, typer.Option(help="Length of the trace.", min=0.1, max=168.0)] = 24.0,
    minutes: Annotated[
        float, typer.Option(help="How long a stream lasts, on average.", min=0.5, max=1440.0)
    ] = 30.0,
    gpus: Annotated[int, typer.Option(help="There are no more GPUs than that.", min=1, max=10_000)] = 4096,
    as_json: JsonOption = False,
) -> None:
    """Say how many GPUs so many streams need, from what forwards cost. Nothing is started; takes seconds to
    minutes.

    Exit code 0: the SLO is kept; 1: it is not, or the question is wrong; 2: wrong options.
    """
    from rearview.config import load_config
    from rearview.planning.costs import H200, read_costs

    # All that can be wrong is read before torch is loaded.
    width, height = parse_size(size) if size is not None else (None, None)
    device = read_costs(costs) if costs is not None else H200
    deployment = load_config(config) if config is not None else None
    if deployment is not None:
        _check(deployment, steps)
    kind: dict[str, Any] = {"fps": fps, "slo_s": slo_ms / 1e3, "jitter_s": min(MAX_JITTER_S, 0.5 / fps)}
    kind["steps"] = steps or (deployment.model.max_steps if deployment else 2)
    kind["width"] = width or (deployment.model.width if deployment else 512)
    kind["height"] = height or (deployment.model.height if deployment else 512)
    from rearview.planning.sizing import size as find

    answer = find(_question(deployment, device, kind, streams, trace.value, hours, 60 * minutes, gpus))
    if as_json:
        print_json(_said(answer))
    else:
        _show(answer)
    if not answer.is_met:
        raise typer.Exit(1)


def _check(deployment: ServiceConfig, steps: int | None) -> None:
    from rearview.errors import ConfigError

    if len(deployment.spans) != 1:
        raise ConfigError("only a deployment of one span (topology: fused) can be planned")
    if steps is not None and steps > deployment.model.max_steps:
        raise ConfigError(f"--steps {steps}: the deployment has room for {deployment.model.max_steps}")


def _question(
    deployment: ServiceConfig | None,
    device: Any,
    kind: dict[str, Any],
    peak: int,
    trace: str,
    hours: float,
    life_s: float,
    gpus: int,
) -> Question:
    from rearview.planning.sizing import Question
    from rearview.planning.streams import Streams

    known: dict[str, Any] = {}
    if deployment is not None:
        span = deployment.spans[0]
        kind |= {"max_batch": span.max_batch, "max_in_flight": deployment.limits.max_in_flight}
        known = {
            "slots": span.fixed_slots or 64,
            "spares": span.spares,
            "max_load": deployment.placement.max_load,
        }
    streams = Streams(**kind)
    return Question(
        device=device,
        streams=streams,
        peak=peak,
        trace=trace,
        hours=hours,
        life_s=life_s,
        gpus=gpus,
        **known,
    )


def _said(answer: Answer) -> dict[str, Any]:
    result, question = answer.result, answer.question
    return {
        "gpus": answer.gpus,
        "streams_per_gpu": answer.per_gpu,
        "is_met": answer.is_met,
        "gpu_hours": round(result.gpu_hours, 2),
        "fewer_gpu_hours_than_one_replica_a_stream": round(answer.saved_share, 4),
        "slo_attainment": round(result.attainment, 5),
        "continuous_play_ratio": round(result.play_ratio, 5),
        "refused_share": round(result.refused_share, 5),
        "asked": result.asked,
        "moves": result.moves,
        "recovered": result.recovered,
        "device": question.device.name,
        "streams": asdict(question.streams),
        "trace": question.trace,
        "curve": [asdict(point) for point in answer.curve.points],
        "samples": [[round(each.time_s), each.sessions, each.replicas] for each in result.samples],
    }


def _show(answer: Answer) -> None:
    from rich.table import Table

    from rearview.planning.sizing import spark

    console, result, question = table_console(), answer.result, answer.question
    kind = question.streams
    size = f"{kind.width}x{kind.height}"
    asked = f"{kind.fps:g} FPS, {kind.steps} steps, {size}; {question.trace}, {question.hours:g} h"
    text = f"{answer.gpus} GPUs for {question.peak} streams ({asked}): {answer.per_gpu} streams a GPU"
    console.print(text, style="bold", markup=False, highlight=False)
    sessions, gpus = [s.sessions for s in result.samples], [s.replicas for s in result.samples]
    table = Table(box=None, show_header=False, pad_edge=False)
    for name, value in (
        ("device", question.device.name),
        (f"pictures within {1e3 * kind.slo_s:g} ms", f"{result.attainment:.2%}"),
        ("continuous play ratio", f"{result.play_ratio:.4f}"),
        ("refused", f"{result.refused_share:.2%} of {result.asked}"),
        ("GPU hours", f"{result.gpu_hours:.1f}, {answer.saved_share:.0%} fewer than a GPU for each stream"),
        ("streams", f"{spark(sessions, PLOT)} {max(sessions)}"),
        ("GPUs", f"{spark(gpus, PLOT)} {max(gpus)}"),
    ):
        table.add_row(name, value)
    console.print(table, highlight=False)
    console.print(
        "\nstreams on one GPU: share of pictures in time, play ratio", markup=False, highlight=False
    )
    for point in answer.curve.points[: answer.per_gpu + 3]:
        bar = "█" * round(40 * point.attainment)
        mark = "<" if point.streams == answer.per_gpu else ""
        text = f"{point.streams:4} {bar:40} {point.attainment:7.2%} {point.play_ratio:.4f} {mark}"
        console.print(text.rstrip(), markup=False, highlight=False)
    if not answer.is_met:
        console.print("The SLO is not kept.", style="bold red")
