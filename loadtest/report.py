"""The README's table of measured numbers, from `loadtest/results/*.json`.

python -m loadtest.report                    print it
python -m loadtest.report --into README.md   replace what stands between the two marker comments
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Annotated

import typer

from loadtest.figures import RESULTS, ResultFile
from loadtest.service import fail

__all__ = ["BEGIN", "END", "insert", "main", "markdown"]

BEGIN = "<!-- measured: begin, made by `python -m loadtest.report --into README.md` -->"
END = "<!-- measured: end -->"
_ORDER = ("demo", "throughput", "transport")
_WHOLE = ("cache_precision", "gpu_check-cuda")
"""Results whose figures are all in the table, those without a target too."""


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
            if f.target is not None or f.unit == "FPS" or result.name in _WHOLE
        ]
        notes += [_note(result), *(f"  - **Not to be relied on:** {problem}." for problem in result.problems)]
    return "\n".join([*lines, "", *notes, ""])


def insert(document: str, table: str) -> str:
    """The document with the table between its markers. ValueError if it has none."""
    before, begin, rest = document.partition(BEGIN)
    _, end, after = rest.partition(END)
    if not begin or not end:
        raise ValueError(f"it lacks the lines {BEGIN} and {END}")
    return f"{before}{BEGIN}\n\n{table}\n{END}{after}"


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
        table = markdown(files)
        if into is None:
            print(table)
        else:
            into.write_text(insert(into.read_text(encoding="utf-8"), table), encoding="utf-8")
    except (OSError, ValueError) as error:
        fail(f"{into}: {error}" if into else str(error))


if __name__ == "__main__":
    typer.run(main)
