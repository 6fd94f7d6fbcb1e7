"""Many runs, one fault each, over all kinds; and what they say, as a result file.

Kinds take turns; the seed of a run is the first one's and its number, so that any run can be made again by
itself. Half of the runs have two ingresses. What failed is kept with its history and logs.
"""

from __future__ import annotations

import asyncio
import os
import shutil
import sys
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Annotated, Any

import typer

from loadtest.figures import RESULTS, Figure, ResultFile, show
from loadtest.reliability.faults import KINDS
from loadtest.reliability.runs import RunPlan, perform
from loadtest.reliability.spawner import Spawner

__all__ = ["main", "plans", "result", "summary"]

NAME = "reliability"
TWO_AT_ONCE = ("two spans killed at once", "replica and ingress killed at once")
KILLS = ("first span killed", "last span killed", "killed before a commit", "killed after a commit")
FREEZES = ("replica frozen", "engine hangs")


def plans(runs: int, seed: int, kinds: Sequence[str], streams: int, seconds: float) -> Iterator[RunPlan]:
    """`runs` runs over the kinds in turn."""
    for number in range(runs):
        kind = kinds[number % len(kinds)]
        turn = number // len(kinds) + number
        topology = "pipeline" if "two spans" in KINDS[kind].wants or turn % 2 else "fused"
        yield RunPlan(seed + number, kind, topology, 1 + (turn // 2) % 2, streams, seconds)


async def perform_all(
    wanted: Sequence[RunPlan], folder: Path, spawner: Spawner, *, keep: bool
) -> list[dict[str, Any]]:
    """Run after run. What found nothing wrong is removed, unless it is to be kept."""
    found = []
    for number, plan in enumerate(wanted, 1):
        where = folder / f"seed-{plan.seed}"
        try:
            outcome = (await perform(plan, where, spawner)).as_json()
        except (TimeoutError, OSError) as error:
            outcome = _broken(plan, error)
        found.append(outcome)
        mark = "ok" if not outcome["violations"] else "WRONG"
        print(
            f"{number:4}/{len(wanted)} seed {plan.seed} {plan.kind}"
            f" ({plan.topology}, {plan.ingresses} ingress): {outcome['frames']} frames,"
            f" {outcome['seconds']} s, {mark}",
            flush=True,
        )
        for violation in outcome["violations"][:5]:
            print(f"          {violation}", flush=True)
        if outcome["violations"]:
            print(f"          kept: {where}; again: {replay(plan)}", flush=True)
        elif not keep:
            await asyncio.to_thread(shutil.rmtree, where)
    return found


def replay(plan: RunPlan) -> str:
    """The command that makes a run again."""
    return (
        f"rearview chaos --runs 1 --seed {plan.seed} --kind '{plan.kind}' --topology {plan.topology}"
        f" --ingresses {plan.ingresses} --streams {plan.streams} --seconds {plan.seconds:g} --keep"
    )


def _broken(plan: RunPlan, error: Exception) -> dict[str, Any]:
    """A run that did not come to its end: nothing can be said of it, and that is wrong too."""
    empty = ("frames", "results", "dropped", "sessions", "refused", "resumed", "ended_ok", "ended_announced")
    return {
        "seed": plan.seed,
        "kind": plan.kind,
        "topology": plan.topology,
        "ingresses": plan.ingresses,
        "streams": plan.streams,
        **dict.fromkeys(empty, 0),
        "moved": {"exact": 0, "approximate": 0, "reset": 0},
        "recovery_s": [],
        "violations": [f"harness: {type(error).__name__}: {error}"],
        "seconds": 0.0,
        "load": round(os.getloadavg()[0], 1),
    }


def result(runs: Sequence[dict[str, Any]], command: str) -> ResultFile:
    """What all runs say."""
    by_validator = {
        name: sum(name == v.split()[0] for run in runs for v in run["violations"])
        for name in ("V1", "V2", "V3", "V4", "V8")
    }
    hurt = [run for run in runs if run["kind"] != "none"]
    setting = f"chain model, {len(runs)} runs of {len({run['kind'] for run in runs})} kinds"
    figures = [
        Figure("frames checked", setting, sum(run["frames"] for run in runs), ""),
        Figure("fault runs", setting, len(hurt), ""),
        Figure("silently lost", setting, by_validator["V1"], "", 0.0, at_most=True),
        Figure("reordered", setting, by_validator["V2"], "", 0.0, at_most=True),
        Figure("doubled", setting, by_validator["V3"], "", 0.0, at_most=True),
        Figure("of another session", setting, by_validator["V4"], "", 0.0, at_most=True),
        Figure("past lost without a word", setting, by_validator["V8"], "", 0.0, at_most=True),
        Figure(
            "runs with any violation",
            setting,
            sum(bool(run["violations"]) for run in runs),
            "",
            0.0,
            at_most=True,
        ),
        *_recovery("first good picture after a replica was killed", runs, KILLS, 0.5, 2.0),
        *_recovery("first good picture after one froze or hung", runs, FREEZES, 2.0, 4.0),
    ]
    loads = [run["load"] for run in runs]
    detail = {"runs": list(runs), "summary": summary(runs), "load": [min(loads), max(loads)] if loads else []}
    return ResultFile.of(NAME, command, figures, detail)


def _recovery(
    what: str, runs: Sequence[dict[str, Any]], kinds: Sequence[str], p50_s: float | None, worst_s: float
) -> list[Figure]:
    times = sorted(each for run in runs if run["kind"] in kinds for each in run["recovery_s"])
    if not times:
        return []
    setting = f"{len(times)} streams, hurt or not, {sum(run['kind'] in kinds for run in runs)} runs"
    return [
        Figure(f"{what}, p50", setting, times[len(times) // 2], "s", p50_s, at_most=True),
        Figure(f"{what}, worst", setting, times[-1], "s", worst_s, at_most=True),
    ]


def summary(runs: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """One entry for each kind of fault."""
    found = []
    for kind in KINDS:
        mine = [run for run in runs if run["kind"] == kind]
        if not mine:
            continue
        times = sorted(each for run in mine for each in run["recovery_s"])
        totals = {
            name: sum(run[name] for run in mine)
            for name in ("frames", "sessions", "resumed", "ended_ok", "ended_announced", "refused")
        }
        found.append(
            {
                "kind": kind,
                "runs": len(mine),
                **totals,
                "moved": {
                    how: sum(run["moved"][how] for run in mine) for how in ("exact", "approximate", "reset")
                },
                "p50_s": times[len(times) // 2] if times else None,
                "worst_s": times[-1] if times else None,
                "violations": sum(len(run["violations"]) for run in mine),
            }
        )
    return found


def main(
    runs: Annotated[int, typer.Option(min=1, help="How many; kinds take turns.")] = len(KINDS),
    seed: Annotated[int, typer.Option(help="Of the first run.")] = 1,
    kind: Annotated[list[str] | None, typer.Option(help="Only these kinds of fault.")] = None,
    streams: Annotated[int, typer.Option(min=3, help="Of clients, in each run.")] = 8,
    seconds: Annotated[float, typer.Option(min=1.0, help="Of traffic, in each run.")] = 4.0,
    topology: Annotated[str, typer.Option(help="fused or pipeline; empty: both in turn.")] = "",
    ingresses: Annotated[int, typer.Option(min=0, max=2, help="0: one and two in turn.")] = 0,
    out: Annotated[Path, typer.Option(help="Folder of the result file.")] = RESULTS,
    keep: Annotated[bool, typer.Option(help="Keep histories and logs of good runs too.")] = False,
) -> None:
    """Hurt a service of plain processes again and again, and judge what its clients saw."""
    unknown = sorted(set(kind or ()) - KINDS.keys())
    if unknown:
        raise typer.BadParameter(f"{', '.join(unknown)}; there are: {', '.join(KINDS)}", param_hint="--kind")
    wanted = list(plans(runs, seed, kind or list(KINDS), streams, seconds))
    wanted = [
        replace(plan, topology=topology or plan.topology, ingresses=ingresses or plan.ingresses)
        for plan in wanted
    ]
    folder = Path(tempfile.mkdtemp(prefix="rearview-chaos-"))
    with Spawner() as spawner:
        found = asyncio.run(perform_all(wanted, folder, spawner, keep=keep))
    command = f"rearview chaos --runs {runs} --seed {seed} --streams {streams} --seconds {seconds:g}"
    report = result(found, command)
    show(report, report.write(out))
    is_wrong = any(run["violations"] for run in found)
    if not is_wrong and not keep:
        shutil.rmtree(folder)
    raise typer.Exit(1 if is_wrong else 0)


if __name__ == "__main__":
    sys.path[:0] = [str(Path(__file__).resolve().parents[2] / "tests")]
    typer.run(main)
