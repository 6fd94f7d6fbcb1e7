"""What Serve and gRPC cost, and what the pipeline gains: FPS of one stream, arm against arm.

    python -m loadtest.throughput

Arms take turns, each in a fresh process: the engine in process, the service fused (1 and 2 threads) and
the service as a pipeline with one thread per replica, with each method. Every figure is the median over
rounds of a ratio of two arms of the same round, since a shared machine's speed changes more between
minutes than arms do.
"""

from __future__ import annotations

import json
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console

from loadtest.figures import Figure, ResultFile, show
from loadtest.service import fail

__all__ = ["ARMS", "Arm", "figures", "main", "order", "ratio"]

ROOT = Path(__file__).resolve().parent.parent
MIN_SERVICE_RATIO = 0.90
MIN_PIPELINE_TO_1_THREAD = 1.5
MIN_PIPELINE_TO_2_THREADS = 1.15
MIN_FPS = {"pipeline-1": 8.0, "pipeline-1-streamv2v": 6.0}
"""On two cores, at 256x256 and two steps."""
DEFAULT_CUT = "encode+denoise-0|denoise-1+decode"
"""The cut that serves one stream best on two cores; `deploy/pocket-cpu-pipeline.yaml` has the same."""
ARM_TIMEOUT_S = 600.0


@dataclass(frozen=True, slots=True)
class Arm:
    """One way to translate the clip."""

    name: str
    kind: str
    """`in-process` or `service`."""
    threads: int
    pipeline: bool = False
    method: str = ""
    """What sessions use; empty: every frame by itself."""


ARMS = (
    Arm("in-process-1", "in-process", 1),
    Arm("fused-1", "service", 1),
    Arm("pipeline-1", "service", 1, pipeline=True),
    Arm("fused-2", "service", 2),
    Arm("in-process-2", "in-process", 2),
    Arm("pipeline-1-streamv2v", "service", 1, pipeline=True, method="streamv2v"),
    Arm("pipeline-1-live2diff", "service", 1, pipeline=True, method="live2diff"),
)
"""In an order that puts the arms of each ratio side by side."""

Rounds = Sequence[Mapping[str, float]]
"""FPS by arm, one mapping per round."""


def order(round_index: int) -> Sequence[Arm]:
    """The arms of a round; every other round runs backwards, so that a drift favours neither."""
    return ARMS if round_index % 2 == 0 else ARMS[::-1]


def ratio(rounds: Rounds, above: str, below: str) -> float:
    """Median over rounds of one arm's FPS over another's in the same round."""
    return statistics.median(fps[above] / fps[below] for fps in rounds)


def figures(rounds: Rounds, setting: str) -> list[Figure]:
    """The targets, then the FPS that they are made of."""
    found = [
        Figure(
            f"gRPC and Serve / the same engine in process, {threads} thread{'s' * (threads > 1)}",
            setting,
            ratio(rounds, f"fused-{threads}", f"in-process-{threads}"),
            "",
            MIN_SERVICE_RATIO,
        )
        for threads in (1, 2)
    ]
    found.append(
        Figure(
            "pipeline / fused with 1 thread, FPS of one stream",
            setting,
            ratio(rounds, "pipeline-1", "fused-1"),
            "",
            MIN_PIPELINE_TO_1_THREAD,
        )
    )
    found.append(
        Figure(
            "pipeline / fused with 2 threads, FPS of one stream",
            setting,
            ratio(rounds, "pipeline-1", "fused-2"),
            "",
            MIN_PIPELINE_TO_2_THREADS,
        )
    )
    medians = {arm.name: statistics.median(fps[arm.name] for fps in rounds) for arm in ARMS}
    return found + [
        Figure(f"FPS of one stream, {name}", setting, fps, "FPS", MIN_FPS.get(name))
        for name, fps in medians.items()
    ]


def main(
    rounds: Annotated[int, typer.Option(min=1, help="Rounds over all arms.")] = 3,
    frames: Annotated[int, typer.Option(min=8, help="Measured frames per arm and round.")] = 120,
    warmup: Annotated[int, typer.Option(min=0, help="Frames before measuring.")] = 24,
    checkpoint: Annotated[str, typer.Option(help="Bundled name or diffusers folder.")] = "pocket",
    max_steps: Annotated[int, typer.Option(min=1, max=4, help="Denoising steps of the chain.")] = 2,
    cut: Annotated[str, typer.Option(help="Spans of the pipeline.")] = DEFAULT_CUT,
    clip: Annotated[Path | None, typer.Option(help="Video; else the bundled clip.")] = None,
) -> None:
    """Compare the service with the engine alone, and the pipeline with fused."""
    console = Console()
    options = ["--frames", str(frames), "--warmup", str(warmup), "--checkpoint", checkpoint]
    options += ["--max-steps", str(max_steps), *(["--clip", str(clip)] if clip else [])]
    runs: list[dict[str, Any]] = []
    for index in range(rounds):
        results: dict[str, Any] = {}
        for arm in order(index):
            results[arm.name] = run_arm(arm, options, cut)
            console.print(
                f"round {index + 1}/{rounds}  {arm.name:14s} {results[arm.name]['fps']:7.2f} FPS",
                markup=False,
            )
        runs.append(results)
    setting = f"{checkpoint}, 256x256, {max_steps} steps, 1 stream, pipeline of {cut.count('|') + 1} spans"
    fps = [{name: run["fps"] for name, run in results.items()} for results in runs]
    problems = sorted(
        {f"{name}: {text}" for results in runs for name, run in results.items() for text in run["problems"]}
    )
    command = f"python -m loadtest.throughput --rounds {rounds} --frames {frames}"
    detail = {"cut": cut, "rounds": runs}
    result = ResultFile.of("throughput", command, figures(fps, setting), detail, problems)
    show(result, result.write(), console)


def run_arm(
    arm: Arm,
    options: Sequence[str],
    cut: str,
    run: Callable[..., subprocess.CompletedProcess[str]] = subprocess.run,
) -> dict[str, Any]:
    """One run of one arm in a fresh process. Ends the command with one line if it fails."""
    with tempfile.TemporaryDirectory(prefix="loadtest-") as folder:
        out = Path(folder) / "arm.json"
        command = [sys.executable, "-m", "loadtest.arms", arm.kind, "--out", str(out), *options]
        command += ["--threads", str(arm.threads), *(["--cut", cut] if arm.pipeline else [])]
        command += ["--method", arm.method] if arm.method else []
        try:
            done = run(command, cwd=ROOT, capture_output=True, text=True, timeout=ARM_TIMEOUT_S)
        except subprocess.TimeoutExpired:
            fail(f"{arm.name} took longer than {ARM_TIMEOUT_S:g} s")
        if done.returncode or not out.exists():
            lines = [line for line in done.stderr.splitlines() if line.strip()]
            said = lines[-1].removeprefix("loadtest: ") if lines else "it said nothing"
            fail(f"{arm.name} ended with {done.returncode}: {said}")
        content: dict[str, Any] = json.loads(out.read_text(encoding="utf-8"))
        return content


if __name__ == "__main__":
    typer.run(main)
