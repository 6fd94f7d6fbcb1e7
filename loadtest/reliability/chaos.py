"""Campaigns against a service of plain processes; and what they say, as parts of a result file.

`faults`: many runs, one fault each, over all kinds. `repeated`: the same blow again and again. `pocket`: a
model that makes pictures, killed and moved. `leaks`: sessions with all kinds of end, and frozen clients.
`calm`: half an hour beside busy loops, in which nothing is wrong.
Kinds take turns; the seed of a run is the first one's and its number, so that any run can be made again by
itself. Half of the runs have two ingresses. What failed is kept with its history and logs.
"""

from __future__ import annotations

import asyncio
import os
import shutil
import sys
import tempfile
from collections.abc import Awaitable, Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated, Any

import typer

from loadtest.figures import RESULTS, Figure, ResultFile, show
from loadtest.machine import describe_machine
from loadtest.reliability import calm, leaks, pocket, repeated
from loadtest.reliability.faults import KINDS
from loadtest.reliability.recovery import recovered
from loadtest.reliability.runs import RunPlan, perform
from loadtest.reliability.sections import NAME, Journal, Load, Section, merged, sections_of
from loadtest.reliability.spawner import Spawner

__all__ = ["CAMPAIGNS", "main", "perform_all", "plans", "replay", "section", "summary"]

TWO_AT_ONCE = ("two spans killed at once", "replica and ingress killed at once")
KILLS = ("first span killed", "last span killed", "killed before a commit", "killed after a commit")
FREEZES = ("replica frozen", "engine hangs")
EDGES = ("ingress killed", "ingress killed before it answers", "ingress killed after it answers")


@dataclass(frozen=True, slots=True)
class Parts:
    """A campaign of pieces, each of which is run by itself."""

    pieces: Mapping[str, Callable[[Path, Spawner], Awaitable[dict[str, Any]]]]
    figures: Callable[[Sequence[dict[str, Any]]], Sequence[Figure]]


CAMPAIGNS: Mapping[str, Parts | None] = {
    "faults": None,
    "repeated": Parts(repeated.PIECES, repeated.figures),
    "pocket": Parts(pocket.PIECES, pocket.figures),
    "leaks": Parts(leaks.PIECES, leaks.figures),
    "calm": Parts(calm.PIECES, calm.figures),
}
"""In the order of the document. None: made of runs, by the options."""


def plans(
    runs: int, seed: int, kinds: Sequence[str], streams: int, seconds: float, pace: float = 1.0
) -> Iterator[RunPlan]:
    """`runs` runs over the kinds in turn."""
    for number in range(runs):
        kind = kinds[number % len(kinds)]
        turn = number // len(kinds) + number
        topology = "pipeline" if "two spans" in KINDS[kind].wants or turn % 2 else "fused"
        yield RunPlan(seed + number, kind, topology, 1 + (turn // 2) % 2, streams, seconds, pace)


async def perform_all(
    wanted: Sequence[RunPlan],
    folder: Path,
    spawner: Spawner,
    journal: Journal | None = None,
    load: Load | None = None,
    *,
    keep: bool,
) -> list[dict[str, Any]]:
    """Run after run, but for those that the journal knows. What found nothing wrong is removed, unless it is
    to be kept.
    """
    found, journal, load = [], journal or Journal(None, ""), load or Load()
    for number, plan in enumerate(wanted, 1):
        if (outcome := journal.get(replay(plan))) is not None:
            found.append(outcome)
            continue
        where = folder / f"seed-{plan.seed}"
        try:
            outcome = (await perform(plan, where, spawner)).as_json()
        except (TimeoutError, OSError) as error:
            outcome = _broken(plan, error)
        load.look()
        journal.put(replay(plan), outcome)
        found.append(outcome)
        is_told = outcome["reached"] or plan.kind == "none"
        mark = "WRONG" if outcome["violations"] else "ok" if is_told else "ok, not reached"
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
        f" --ingresses {plan.ingresses} --streams {plan.streams} --seconds {plan.seconds:g}"
        f" --pace {plan.pace:g} --keep"
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
        "reached": False,
        **recovered(()),
        "violations": [f"harness: {type(error).__name__}: {error}"],
        "seconds": 0.0,
        "load": round(os.getloadavg()[0], 1),
    }


def section(runs: Sequence[dict[str, Any]], command: str, load: tuple[float, float]) -> Section:
    """What all runs say."""
    by_validator = {
        name: sum(name == v.split()[0] for run in runs for v in run["violations"])
        for name in ("V1", "V2", "V3", "V4", "V8")
    }
    setting = f"chain model, {len(runs)} runs of {len({run['kind'] for run in runs})} kinds"
    hurt = [run for run in runs if run["reached"]]
    counts = {
        "silently lost": by_validator["V1"],
        "reordered": by_validator["V2"],
        "doubled": by_validator["V3"],
        "of another session": by_validator["V4"],
        "past lost without a word": by_validator["V8"],
        "runs with any violation": sum(bool(run["violations"]) for run in runs),
        "hurt streams that never got a picture again": sum(len(run["never"]) for run in runs),
    }
    figures = [
        Figure("frames checked", setting, sum(run["frames"] for run in runs), "", 200_000.0),
        Figure("fault runs", setting, len(hurt), "", 100.0),
        Figure("kinds of fault", setting, len({run["kind"] for run in hurt}), "", 16.0),
        *(Figure(what, setting, count, "", 0.0, at_most=True) for what, count in counts.items()),
        *_recovery("first good picture after a replica was killed", runs, KILLS, 0.5, 2.0),
        *_recovery("first good picture after one froze or hung", runs, FREEZES, 2.0, 4.0),
        *_recovery("first good picture after an ingress was killed, of two", runs, EDGES, None, 2.0),
    ]
    return Section("faults", command, figures, {"runs": list(runs), "summary": summary(runs)}, load)


def _recovery(
    what: str, runs: Sequence[dict[str, Any]], kinds: Sequence[str], p50_s: float | None, worst_s: float
) -> list[Figure]:
    mine = [run for run in runs if run["kind"] in kinds and (kinds is not EDGES or run["ingresses"] > 1)]
    times = sorted(each for run in mine for each in run["recovery_s"])
    if not times:
        return []
    setting = f"{len(times)} streams that it hurt, {len(mine)} runs"
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
            for name in (
                *("frames", "sessions", "resumed", "ended_ok", "ended_announced", "refused"),
                *("hurt", "hurt_ended", "reached"),
            )
        }
        found.append(
            {
                "kind": kind,
                "runs": len(mine),
                **totals,
                "moved": {
                    how: sum(run["moved"][how] for run in mine) for how in ("exact", "approximate", "reset")
                },
                "never": sum(len(run["never"]) for run in mine),
                "p50_s": times[len(times) // 2] if times else None,
                "worst_s": times[-1] if times else None,
                "violations": sum(len(run["violations"]) for run in mine),
            }
        )
    return found


def main(
    runs: Annotated[int, typer.Option(min=1, help="Of campaign faults; kinds take turns.")] = len(KINDS),
    seed: Annotated[int, typer.Option(help="Of the first run.")] = 1,
    kind: Annotated[list[str] | None, typer.Option(help="Only these kinds of fault.")] = None,
    streams: Annotated[int, typer.Option(min=3, help="Of clients, in each run.")] = 8,
    seconds: Annotated[float, typer.Option(min=1.0, help="Of traffic, in each run.")] = 4.0,
    pace: Annotated[float, typer.Option(min=0.1, help="Multiplies the frame rates of all streams.")] = 1.0,
    topology: Annotated[str, typer.Option(help="fused or pipeline; empty: both in turn.")] = "",
    ingresses: Annotated[int, typer.Option(min=0, max=2, help="0: one and two in turn.")] = 0,
    campaign: Annotated[
        list[str] | None, typer.Option(help=f"{', '.join(CAMPAIGNS)}, or all of them. Default: faults.")
    ] = None,
    resume: Annotated[
        Path | None, typer.Option(help="Journal of what was run: go on from there, and remove it at the end.")
    ] = None,
    out: Annotated[Path, typer.Option(help="Folder of the result file.")] = RESULTS,
    keep: Annotated[bool, typer.Option(help="Keep histories and logs of good runs too.")] = False,
) -> None:
    """Hurt a service of plain processes again and again, and judge what its clients saw."""
    unknown = sorted(set(kind or ()) - KINDS.keys())
    if unknown:
        raise typer.BadParameter(f"{', '.join(unknown)}; there are: {', '.join(KINDS)}", param_hint="--kind")
    chosen = tuple(CAMPAIGNS) if "all" in (campaign or ()) else tuple(campaign or ("faults",))
    if strange := sorted(set(chosen) - set(CAMPAIGNS)):
        raise typer.BadParameter(f"{', '.join(strange)}: {', '.join(CAMPAIGNS)}", param_hint="--campaign")
    wanted = [
        replace(plan, topology=topology or plan.topology, ingresses=ingresses or plan.ingresses)
        for plan in plans(runs, seed, kind or list(KINDS), streams, seconds, pace)
    ]
    command = f"rearview chaos --runs {runs} --seed {seed} --streams {streams} --seconds {seconds:g}"
    command += f" --pace {pace:g}" + "".join(f" --kind '{each}'" for each in kind or ())
    folder = Path(tempfile.mkdtemp(prefix="rearview-chaos-"))
    journal = Journal(resume, str(describe_machine()["commit"]))
    with Spawner() as spawner:
        for name in chosen:
            if name == "faults":
                made = asyncio.run(faults(wanted, command, folder, spawner, journal, keep=keep))
            else:
                made = asyncio.run(other(name, folder / name, spawner, journal))
            former = ResultFile.read(out / f"{NAME}.json") if (out / f"{NAME}.json").exists() else None
            report = merged(former, [made], tuple(CAMPAIGNS))
            path = report.write(out)
            show(replace(report, figures=made.figures, command=made.command), path)
    journal.done()
    parts = [sections_of(report)[name] for name in chosen]
    is_wrong = any(part.problems or any(figure.met is False for figure in part.figures) for part in parts)
    if not is_wrong and not keep:
        shutil.rmtree(folder)
    raise typer.Exit(1 if is_wrong else 0)


async def faults(
    wanted: Sequence[RunPlan], command: str, folder: Path, spawner: Spawner, journal: Journal, *, keep: bool
) -> Section:
    """The campaign of all kinds of fault."""
    load = Load()
    found = await perform_all(wanted, folder, spawner, journal, load, keep=keep)
    return section(found, command, (load.low, load.high))


async def other(name: str, folder: Path, spawner: Spawner, journal: Journal) -> Section:
    """A campaign of one piece after the other."""
    load, parts, made, problems = Load(), CAMPAIGNS[name], [], []
    assert parts is not None, f"{name} has parts"
    for what, perform_part in parts.pieces.items():
        key = f"{name}: {what}"
        if (known := journal.get(key)) is None:
            try:
                known = await perform_part(folder / what.replace(" ", "-"), spawner)
            except (TimeoutError, OSError) as error:
                problems.append(f"{what} did not come to its end: {type(error).__name__}")
                print(f"{key}: {problems[-1]}; kept: {folder}", flush=True)
                continue
            journal.put(key, known)
        made.append(known)
        print(f"{key}: load {load.look():g}", flush=True)
    command, span = f"rearview chaos --campaign {name}", (load.low, load.high)
    return Section(name, command, parts.figures(made), {"pieces": made}, span, problems=problems)


if __name__ == "__main__":
    sys.path[:0] = [str(Path(__file__).resolve().parents[2] / "tests")]
    typer.run(main)
