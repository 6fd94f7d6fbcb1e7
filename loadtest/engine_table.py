"""The table of `docs/performance.md`: what the engine's benchmark found, device by device.

`python -m loadtest.report --into docs/performance.md` puts it there.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from loadtest.engine_targets import TARGETS
from loadtest.figures import Figure, ResultFile

__all__ = ["engine_markdown"]

EXPECTED = {"engine_h200": "NVIDIA H200", "engine_h100": "NVIDIA H100", "engine_cpu": "CPU"}
"""Results that there should be."""
MISSING = "not yet measured"


def engine_markdown(results: Sequence[ResultFile]) -> str:
    """A part for each device that has a result or should have one."""
    found = {result.name: result for result in results if result.name.startswith("engine_")}
    lines: list[str] = []
    for name in dict.fromkeys([*EXPECTED, *found]):
        lines += _part(found[name]) if name in found else [f"### {EXPECTED[name]}", "", f"{MISSING}.", ""]
    return "\n".join(lines)


def _part(result: ResultFile) -> Iterator[str]:
    detail, machine = result.detail, result.machine
    yield f"### {detail['device']}"
    yield ""
    yield (
        f"`{result.command}`, {machine['date'][:10]}, commit {machine['commit']}, torch {detail['torch']},"
        f" diffusers {detail['diffusers']}; {detail['size']}, {detail['pixels']}², {detail['dtype']};"
        f" host {machine['cpu']}, {machine['cores']} cores, torch's threads {detail['threads']}, load average"
        f" {machine['load_average'][0]:g}; bound {detail['peak_tflops']:.3g} TFLOP/s."
    )
    yield ""
    yield from _targets(result)
    yield "| | FPS | p50 ms | p95 ms | bound | device idle | accelerated | MiB | off the plain path |"
    yield "|---|---:|---:|---:|---:|---:|---:|---:|---:|"
    for row in detail["rows"]:
        yield _line(row)
    yield ""
    yield from (f"- **Not to be relied on:** {problem}." for problem in result.problems)


def _targets(result: ResultFile) -> Iterator[str]:
    """Those of this size and kind of device, met or not yet measured."""
    kind = "cpu" if result.detail["device"] == "CPU" else "cuda"
    wanted = [each for each in TARGETS if each.is_for(result.detail["size"], kind)]
    if not wanted:
        return
    known = {figure.what: figure for figure in result.figures}
    yield "| target | value | must | |"
    yield "|---|---:|---:|---|"
    for target in wanted:
        figure = known.get(target.what)
        if figure is None:
            must = Figure(target.what, "", 0.0, target.unit, target.target, target.at_most).target_text
            yield f"| {target.what} | {MISSING} | {must} | |"
        else:
            yield f"| {figure.what} | {figure.value_text} | {figure.target_text} | {figure.met_text} |"
    yield ""


def _line(row: Mapping[str, Any]) -> str:
    if "fps" not in row:
        return f"| {row['name']} | failed | | | | | | | |"
    check = row.get("check")
    cells = [
        f"{row['fps']:.2f}" if row["fps"] < 100 else f"{row['fps']:.0f}",
        f"{row['latency_p50_ms']:.1f}",
        "" if row["latency_p95_ms"] is None else f"{row['latency_p95_ms']:.1f}",
        _percent(row["share_of_bound"]),
        _percent(row.get("idle_share")),
        _percent(row.get("accelerated_share")),
        "" if row["memory_mib"] is None else f"{row['memory_mib']:.0f}",
        f"{check['rms_levels']:.2g}" if check else "",
    ]
    return f"| {row['name']} | {' | '.join(cells)} |"


def _percent(share: float | None) -> str:
    return "" if share is None else f"{100 * share:.1f} %"
