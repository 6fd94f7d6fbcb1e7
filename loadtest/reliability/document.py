"""`docs/reliability.md`, made of `loadtest/results/reliability.json`: promises, runs, what came of them.

python -m loadtest.reliability.document           write it
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Annotated, Any

import typer

from loadtest.figures import RESULTS, ResultFile
from loadtest.reliability.chaos import NAME, TWO_AT_ONCE
from loadtest.reliability.planted import BUGS

__all__ = ["DOCUMENT", "main", "markdown"]

DOCUMENT = Path(__file__).resolve().parents[2] / "docs" / "reliability.md"

HEAD = """# Reliability

Made by `python -m loadtest.reliability.document` from `loadtest/results/reliability.json`, never by hand.

Each run is a whole service of plain processes, open-loop traffic of several tenants by the client library
and by raw stubs, some of it rude, and one fault. The model of these runs is `chain`: its answers carry the
session that it believes it serves, the ordinal, and a hash chain over every input of the session so far, for
each denoising step. Clients write histories, the service counts; ten pure validators read both.
"""

PROMISES = """## Promises

| promise | judged by |
|---|---|
| P1 every frame has one outcome: a picture, a drop with its reason, or the stream's end | V1, V9 |
| P2 outcomes come in order, none twice, also over resumes and moves | V2, V3 |
| P3 no session sees another one's picture or state | V4 |
| P4 with a budget, nothing older than it is delivered | V5 |
| P5 everything is bounded | `tests/ingress/test_stream_limits.py` |
| P6 what is not served is refused at once, with a hint | V6 |
| P7 after a fault the session goes on, and says how exactly: EXACT is bit-equal | V8 |
| P8 slots, leases, tasks and descriptors come back | V7, `tests/reliability/test_cleanup.py` |
| P9 ends have a listed status and reason, and tell nothing of the inside | V10 |
| P10 a token that is worth nothing opens nothing | V10, `tests/ingress/test_auth.py` |

Not promised: that a frame is processed exactly once through a crash, that two faults at once are survived
(below is what they do), and anything about clusters and GPUs on which it was not run.
"""


def markdown(result: ResultFile) -> str:
    """The document."""
    return "\n".join([HEAD, PROMISES, *_what_was_run(result), *_kinds(result), *_two(result), *_again()])


def _what_was_run(result: ResultFile) -> Iterator[str]:
    machine = result.machine
    low, high = result.detail["load"]
    yield "## What was run\n"
    yield (
        f"`{result.command}` on {machine['date'][:10]}, commit {machine['commit']}: {machine['cpu']},"
        f" {machine['cores']} cores, Python {machine['python']}. The machine's load average was {low:g} to"
        f" {high:g} during the runs, the service and its clients included.\n"
    )
    yield "| figure | measured with | value | target | |"
    yield "|---|---|---:|---:|---|"
    for figure in result.figures:
        value = f"{figure.value:,.0f}" if not figure.unit else figure.value_text
        yield f"| {figure.what} | {figure.setting} | {value} | {figure.target_text} | {figure.met_text} |"
    yield ""


def _kinds(result: ResultFile) -> Iterator[str]:
    yield "## By kind of fault\n"
    yield (
        "*Moved*: notices of sessions that went on in another lane, by what they said of the past. *Resumed*:"
        " by their clients, over another connection. *Ended*: with a status and a reason, and opened anew by"
        " the client. *Back*: from the fault to the first picture of a frame that was sent after it, over all"
        " streams that were running, hurt or not; those to which none came any more (they ended, or their"
        " traffic was over) are not in it. *Wrong*: what the validators found.\n"
    )
    yield (
        "| fault | runs | frames | moved exact / approximate / reset | resumed | ended"
        " | back p50 | worst | wrong |"
    )
    yield "|---|---:|---:|---:|---:|---:|---:|---:|---:|"
    for entry in result.detail["summary"]:
        yield _line(entry)
    yield ""


def _line(entry: Mapping[str, Any]) -> str:
    moved = entry["moved"]
    said = f"{moved['exact']} / {moved['approximate']} / {moved['reset']}"
    p50, worst = ("" if entry[name] is None else f"{entry[name]:.2f} s" for name in ("p50_s", "worst_s"))
    return (
        f"| {entry['kind']} | {entry['runs']} | {entry['frames']:,} | {said} | {entry['resumed']} |"
        f" {entry['ended_announced']} | {p50} | {worst} | {entry['violations']} |"
    )


def _two(result: ResultFile) -> Iterator[str]:
    entries = [entry for entry in result.detail["summary"] if entry["kind"] in TWO_AT_ONCE]
    if not entries:
        return
    yield "## Two faults at once\n"
    for entry in entries:
        streams = entry["moved"]["exact"] + entry["moved"]["approximate"] + entry["moved"]["reset"]
        yield (
            f"* {entry['kind']}, {entry['runs']} runs: {streams} sessions went on in another lane,"
            f" {entry['resumed']} were resumed, {entry['ended_announced']} ended with a reason;"
            f" {entry['violations']} findings."
        )
    yield ""


def _again() -> Iterator[str]:
    yield "## Who checks the checker\n"
    yield "Each of these bugs is planted into the service in CI, and must be found by its validator.\n"
    for name, bug in BUGS.items():
        yield f"* {name}: {bug.validator}"
    yield (
        "\n`make chaos` runs all kinds many times. A run that finds something keeps its history, its logs and"
        " the command that makes it again, `rearview chaos --runs 1 --seed … --kind …`.\n"
    )


def main(
    results: Annotated[Path, typer.Option(help="Folder of the result file.")] = RESULTS,
    into: Annotated[Path, typer.Option(help="The document.")] = DOCUMENT,
) -> None:
    """Write the document."""
    into.write_text(markdown(ResultFile.read(results / f"{NAME}.json")), encoding="utf-8")


if __name__ == "__main__":
    typer.run(main)
