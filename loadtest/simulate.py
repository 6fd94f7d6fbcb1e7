"""A day of 1,000 GPUs and 10,000 streams in virtual time: what four policies make of four traces.

    python -m loadtest.simulate

Placement, admission, rows and scaling are the service's own; only what a forward takes is a table, that
of the measured H200 (docs/planning.md). First ten GPUs for a minute, row by row, against the same minute
session by session; then the days.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Annotated, Any
from zlib import crc32

import typer
from rearview.contract.lease import Load, Usage
from rearview.control.placement import Asked, Replica, place
from rearview.engine.engine import Order
from rearview.planning.costs import H200
from rearview.planning.curves import Curve, fit
from rearview.planning.fleet import SPAN, Fleet
from rearview.planning.policies import Fixed, Ours, Policy, Utilisation
from rearview.planning.ranking import Ranking
from rearview.planning.rows import Outcome, Stint, play
from rearview.planning.simulation import Conditions, Result, simulate
from rearview.planning.sizing import TARGET, Goal, Question, figures_of, start_of
from rearview.planning.streams import Streams
from rearview.planning.traces import Trace, trace
from rich.console import Console

from loadtest.figures import RESULTS, Figure, ResultFile, show

__all__ = ["Check", "Day", "check", "days", "main"]

STREAMS = Streams()
GOAL = Goal()
COST = H200.frame(STREAMS.steps)
SHARE = STREAMS.share(H200)
SLOTS = 16
BUSY = 0.9
"""The highest threshold with which that autoscaler ever grows: its tolerance is a tenth, and none is busier
than all the time."""
CHECK_GPUS, CHECK_S = 10, 60.0
MAX_DIFFERENCE = 2.0
PEAK_SHARES = {"steady": 1.0, "diurnal": 1.0, "flash-crowd": 1.0, "node-loss": 0.8}
"""Of the peak. On a node loss there is to be room on what is left."""
OURS, BUSY_SHARE, DECLARED, BATCH, ALONE = (
    "ours",
    "utilisation: busy share",
    "utilisation: declared load",
    "stream batch",
    "one replica a stream",
)


@dataclass(frozen=True)
class Check:
    """A minute, row by row and session by session."""

    streams: int
    rows: Outcome
    sessions: Result
    seconds: float
    """That the rows took."""

    @property
    def difference(self) -> float:
        """Of SLO attainment, in points."""
        return 100 * abs(self.rows.attainment - self.sessions.attainment)


@dataclass(frozen=True)
class Day:
    """What a policy made of a trace."""

    trace: str
    policy: str
    result: Result
    seconds: float
    """That it took."""


def check(curve: Curve, streams: int, max_load: float | None) -> Check:
    """Ten replicas with sessions that come and go: placed once, then counted both ways."""
    wanted = trace("steady", streams, duration_s=CHECK_S, life_s=CHECK_S)
    fleet = Fleet(COST, STREAMS.asked(max_load), SLOTS, CHECK_GPUS, keeps_stays=True)
    sessions = simulate(wanted, Fixed(CHECK_GPUS), fleet, curve, Conditions(), CHECK_GPUS)
    stints: dict[str, list[Stint]] = {}
    for stay in fleet.stays or ():
        # Those who are there from the start did not all begin with the same frame.
        begun_s = stay.start_s + crc32(stay.session_id.encode()) % 997 / 997 / STREAMS.fps
        stints.setdefault(stay.replica_id, []).append(Stint(stay.session_id, begun_s, stay.end_s))
    rows, begun_s = Outcome(), time.perf_counter()
    for of_one in stints.values():
        rows.add(play(of_one, H200, STREAMS))
    return Check(streams, rows, sessions, time.perf_counter() - begun_s)


def policies(curve: Curve, gpus: int, per_gpu: int) -> Mapping[str, Callable[[], Policy]]:
    """Those that scale, all with the same aim: a tenth below what a replica takes."""
    question = Question(device=H200, streams=STREAMS, peak=1, gpus=gpus, slots=SLOTS)
    target = TARGET * per_gpu * SHARE

    def busy(sessions: int) -> float:
        return curve.at(sessions).busy if sessions else 0.0

    return {
        OURS: lambda: Ours(figures_of(question, per_gpu)),
        BUSY_SHARE: lambda: Utilisation(lambda each: busy(each.sessions), BUSY, gpus),
        DECLARED: lambda: Utilisation(lambda each: each.share, target, gpus),
    }


def days(curve: Curve, batch: Curve, peak: int, gpus: int, hours: float, console: Console) -> Sequence[Day]:
    """Every policy on every trace."""
    per_gpu = curve.most(GOAL.attainment, GOAL.play_ratio)
    found = []
    for name, part in PEAK_SHARES.items():
        wanted = trace(name, part * peak, duration_s=3600 * hours)
        for policy, make in policies(curve, gpus, per_gpu).items():
            at_start = start_of(wanted.at_start, per_gpu, 0, gpus)
            found.append(_day(wanted, policy, make(), curve, per_gpu, gpus, at_start))
            _say(found[-1], console)
        in_batch = batch.most(GOAL.attainment, GOAL.play_ratio)
        fixed = min(gpus, math.ceil(part * peak / in_batch))
        found.append(_day(wanted, BATCH, Fixed(fixed), batch, in_batch, gpus, fixed))
        _say(found[-1], console)
    return found


def _day(
    wanted: Trace, name: str, policy: Policy, curve: Curve, per_gpu: int, gpus: int, at_start: int
) -> Day:
    fleet = Fleet(COST, STREAMS.asked((per_gpu + 0.5) * SHARE), SLOTS, gpus)
    begun_s = time.perf_counter()
    result = simulate(wanted, policy, fleet, curve, Conditions(), at_start)
    return Day(wanted.name, name, result, time.perf_counter() - begun_s)


def _say(day: Day, console: Console) -> None:
    result = day.result
    text = (
        f"{day.trace}, {day.policy}: {result.gpu_hours:.0f} GPU hours, attainment {result.attainment:.4f},"
        f" play {result.play_ratio:.4f}, refused {result.refused_share:.4f}, {day.seconds:.0f} s"
    )
    console.print(text, markup=False, highlight=False)


def placements_per_s(replicas: int = 1000, calls: int = 200) -> tuple[float, float]:
    """Of the plain placement and of the one that is kept in order: answers in a second."""
    fleet = [Replica(f"r{n:04d}", SPAN, "", f"n{n // 8}", SLOTS, SLOTS, COST) for n in range(replicas)]
    usage = {each.replica_id: Usage(n % 9, _times(n % 9)) for n, each in enumerate(fleet)}
    asked: Asked = STREAMS.asked(0.95)
    ranking = Ranking(SPAN)
    for each in fleet:
        ranking.put(each, usage[each.replica_id])
    by_id = {each.replica_id: each for each in fleet}
    begun_s = time.perf_counter()
    for _ in range(calls):
        place([SPAN], fleet, usage, asked)
    plain_s = time.perf_counter() - begun_s
    begun_s = time.perf_counter()
    for n in range(10 * calls):
        # With the change that follows from it, and one that ends somewhere.
        chosen, left = ranking.place(asked), f"r{n % replicas:04d}"
        ranking.put(by_id[chosen], Usage(1 + n % 9, _times(1 + n % 9)))
        ranking.put(by_id[left], usage[left])
    return calls / plain_s, 10 * calls / (time.perf_counter() - begun_s)


def _times(sessions: int) -> Load:
    load = STREAMS.load
    return Load(load.frames_per_s * sessions, load.pixels_per_s * sessions)


def figures(
    checks: Sequence[Check],
    found: Sequence[Day],
    speeds: tuple[float, float],
    peak: int,
    gpus: int,
    hours: float,
) -> list[Figure]:
    """With their targets."""
    by_name = {(day.trace, day.policy): day for day in found}
    minute = f"{CHECK_GPUS} GPUs, {CHECK_S:g} s, 15 FPS, 2 steps"
    shown = [
        Figure(
            f"row by row against session by session, {each.streams} streams",
            f"{minute}: {100 * each.rows.attainment:.2f} % and {100 * each.sessions.attainment:.2f} %",
            each.difference,
            "points of SLO attainment",
            MAX_DIFFERENCE,
            at_most=True,
        )
        for each in checks
    ]
    setting = f"{gpus} GPUs, {peak} streams at most, {hours:g} h, 15 FPS, 2 steps, SLO 200 ms"
    slowest_s = max(day.seconds for day in found)
    shown.append(Figure("the slowest day", setting, slowest_s, "s", 300.0, at_most=True))
    for name in PEAK_SHARES:
        ours, result = by_name[name, OURS], by_name[name, OURS].result
        alone_hours = result.session_s / 3600
        fewer = 100 * (1 - result.gpu_hours / alone_hours)
        shown += [
            Figure(
                f"{name}: SLO attainment of admitted sessions", setting, 100 * result.attainment, "%", 99.0
            ),
            Figure(
                f"{name}: continuous play ratio of admitted sessions", setting, result.play_ratio, "", 0.995
            ),
            Figure(f"{name}: refused", setting, 100 * result.refused_share, "%"),
            Figure(f"{name}: fewer GPU hours than {ALONE}", setting, fewer, "%", 45.0),
        ]
        for other in (BUSY_SHARE, DECLARED, BATCH):
            more = 100 * (ours.result.gpu_hours / by_name[name, other].result.gpu_hours - 1)
            target = None if other == BATCH else 0.0
            shown.append(
                Figure(f"{name}: GPU hours beyond {other}", setting, more, "%", target, at_most=True)
            )
    shown += [
        Figure("placements, plain", "1000 replicas, 1 span", speeds[0], "/s"),
        Figure("placements, kept in order", "1000 replicas, 1 span", speeds[1], "/s"),
    ]
    return shown


def main(
    peak: Annotated[int, typer.Option(help="Streams at a time, at most.", min=10)] = 10_000,
    gpus: Annotated[int, typer.Option(help="There are no more.", min=1)] = 1000,
    hours: Annotated[float, typer.Option(help="Length of each trace.", min=0.1)] = 24.0,
    seconds: Annotated[float, typer.Option(help="Length of each row-accurate run of the curves.")] = 20.0,
    results: Annotated[Path, typer.Option(help="Folder for the JSON file.")] = RESULTS,
) -> None:
    """Fit the curves, check them, then run every policy on every trace."""
    console = Console()
    curve = fit(H200, STREAMS, seconds=seconds, rounds=4)
    batch = fit(H200, STREAMS, Order.STREAM_BATCH, seconds=seconds, rounds=2)
    per_gpu = curve.most(GOAL.attainment, GOAL.play_ratio)
    limit = (per_gpu + 0.5) * SHARE
    checks = [check(curve, 80, limit), check(curve, 100, limit), check(curve, 110, None)]
    for each in checks:
        text = (
            f"{each.streams} streams: {each.rows.attainment:.4f} row by row, {each.sessions.attainment:.4f}"
        )
        console.print(text, markup=False, highlight=False)
    found = days(curve, batch, peak, gpus, hours, console)
    detail = {
        "device": H200.name,
        "streams": asdict(STREAMS),
        "streams_per_gpu": per_gpu,
        "curve": [asdict(point) for point in curve.points],
        "stream_batch_curve": [asdict(point) for point in batch.points],
        "checks": [_check_detail(each) for each in checks],
        "days": [_day_detail(day) for day in found],
    }
    shown = figures(checks, found, placements_per_s(), peak, gpus, hours)
    command = f"python -m loadtest.simulate --peak {peak} --gpus {gpus} --hours {hours:g}"
    result = ResultFile.of("simulate", command, shown, detail)
    show(result, result.write(results), console)


def _check_detail(each: Check) -> dict[str, Any]:
    return {
        "streams": each.streams,
        "frames": each.rows.frames,
        "rows": each.rows.rows,
        "seconds": round(each.seconds, 1),
        "attainment_by_rows": each.rows.attainment,
        "attainment_by_sessions": each.sessions.attainment,
        "play_ratio_by_rows": each.rows.play_ratio,
        "play_ratio_by_sessions": each.sessions.play_ratio,
    }


def _day_detail(day: Day) -> dict[str, Any]:
    result = day.result
    samples = [(round(each.time_s), each.sessions, each.replicas) for each in result.samples[::6]]
    left_out = ("samples", "seconds_with")
    told = {name: value for name, value in asdict(result).items() if name not in left_out}
    return {
        "trace": day.trace,
        "policy": day.policy,
        "seconds": round(day.seconds, 1),
        **told,
        "samples": samples,
    }


if __name__ == "__main__":
    typer.run(main)
