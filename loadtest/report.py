"""The tables of measured numbers, from `loadtest/results/*.json`: all of them, and the few of the README.

python -m loadtest.report                            print all
python -m loadtest.report --into docs/figures.md     replace what stands between the two marker comments
python -m loadtest.report --into README.md           the same; its marker asks for the short table
python -m loadtest.report --into docs/performance.md the same; its marker asks for the engine's alone
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Annotated

import typer

from loadtest.engine_table import engine_markdown
from loadtest.figures import RESULTS, Figure, ResultFile
from loadtest.service import fail

__all__ = ["BEGIN", "BEGIN_ENGINE", "BEGIN_SHORT", "END", "insert", "main", "markdown", "short"]

BEGIN = "<!-- measured: begin, made by `python -m loadtest.report --into docs/figures.md` -->"
BEGIN_SHORT = "<!-- measured, in short: begin, made by `python -m loadtest.report --into README.md` -->"
BEGIN_ENGINE = (
    "<!-- measured, engine: begin, made by `python -m loadtest.report --into docs/performance.md` -->"
)
END = "<!-- measured: end -->"
_ORDER = ("demo", "throughput", "transport")
_WHOLE = ("cache_precision", "compiled", "control_loop", "gpu_check-cuda", "host_time", "scaling", "webrtc")
"""Results whose figures are all in the table, those without a target too."""


_GPU, _KILLED = "engine_h200", "first good picture after a replica was killed, p50"
_SHORT = {
    ("throughput", "FPS of one stream, fused-2"): "one stream on two cores",
    (
        "throughput",
        "FPS of one stream, pipeline-1-streamv2v",
    ): "with a feature bank, in two processes",
    ("transport", "added latency per frame, p50"): "what gRPC, ingress and links add to a frame",
    (
        _GPU,
        "engine, plain, 4 steps, 1 session, compiled graphs",
    ): "one stream of Stable Diffusion's size, 4 steps, no service around it",
    (_GPU, "engine, plain, 4 steps, 16 sessions, compiled graphs"): "the same, sixteen streams together",
    ("reliability", _KILLED): "the next picture after a replica was killed",
}
"""By result and figure what a reader of the README is told, in his words."""


def short(results: Sequence[ResultFile]) -> str:
    """The few figures that say what to expect. ValueError for one that no result has."""
    found = {(result.name, f.what): (result, f) for result in results for f in result.figures}
    if missing := [what for what in _SHORT if what not in found]:
        raise ValueError(f"no result has {missing[0][1]!r} of {missing[0][0]}")
    lines = ["| | | measured with | on |", "|---|---:|---|---|"]
    for what, words in _SHORT.items():
        result, figure = found[what]
        machine = result.machine
        on = "" if "NVIDIA" in figure.setting else f"{machine['cpu']}, {machine['cores']} cores"
        lines.append(f"| {words} | {figure.value_text} | {figure.setting} | {on or 'the GPU named'} |")
    return "\n".join([*lines, ""])


def markdown(results: Sequence[ResultFile]) -> str:
    """A table of frame rates, of all that has a target and of some results as a whole, then a line per
    result: how it was measured. The other figures are in the results' files.
    """
    lines = ["| figure | measured with | value | target | |", "|---|---|---:|---:|---|"]
    notes = []
    for result in sorted(results, key=_rank):
        lines += [
            f"| {f.what} | {f.setting} | {f.value_text} | {f.target_text} | {f.met_text} |"
            for f in result.figures
            if _is_shown(f, result.name)
        ]
        notes += [_note(result), *(f"  - **Not to be relied on:** {problem}." for problem in result.problems)]
    return "\n".join([*lines, "", *notes, ""])


def insert(document: str, results: Sequence[ResultFile]) -> str:
    """The document with the table that its markers ask for between them. ValueError if it has none."""
    tables = {BEGIN_SHORT: short, BEGIN_ENGINE: engine_markdown, BEGIN: markdown}
    begin = next((marker for marker in tables if marker in document), BEGIN)
    before, found, rest = document.partition(begin)
    _, end, after = rest.partition(END)
    if not found or not end:
        raise ValueError(f"it lacks the lines {BEGIN} and {END}")
    return f"{before}{begin}\n\n{tables[begin](results)}\n{END}{after}"


def _is_shown(figure: Figure, name: str) -> bool:
    """Of the engine's own benchmark the targets alone: the rest is in `docs/performance.md`."""
    is_rate = figure.unit == "FPS" and not name.startswith("engine_")
    return figure.target is not None or is_rate or name in _WHOLE


def _rank(result: ResultFile) -> tuple[int, str]:
    return (_ORDER.index(result.name) if result.name in _ORDER else len(_ORDER), result.name)


def _note(result: ResultFile) -> str:
    machine = result.machine
    versions = machine["versions"]
    named = ", ".join(f"{name} {versions[name]}" for name in ("torch", "ray", "grpcio") if name in versions)
    return (
        f"- `{result.command}`: {machine['cpu']}, {machine['cores']} cores, load average"
        f" {machine['load_average'][0]:g}, {machine['date'][:10]}, Python {machine['python']}, {named},"
        f" commit {machine['commit']}"
    )


def main(
    results: Annotated[Path, typer.Option(help="Folder with the JSON files.")] = RESULTS,
    into: Annotated[Path | None, typer.Option(help="Document to put the table into.")] = None,
) -> None:
    """Make the table of measured numbers."""
    try:
        files = [ResultFile.read(path) for path in sorted(results.glob("*.json"))]
        if not files:
            fail(f"{results} has no results: run python -m loadtest.transport and its neighbours first")
        if into is None:
            print(markdown(files))
        else:
            into.write_text(insert(into.read_text(encoding="utf-8"), files), encoding="utf-8")
    except (OSError, ValueError) as error:
        fail(f"{into}: {error}" if into else str(error))


if __name__ == "__main__":
    typer.run(main)
