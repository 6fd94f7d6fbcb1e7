"""`docs/reliability.md`, made of `loadtest/results/reliability.json`: promises, runs, what came of them.

python -m loadtest.reliability.document           write it
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any

import typer

from loadtest.figures import RESULTS, ResultFile
from loadtest.reliability import nodes
from loadtest.reliability.attacks import ATTACKS
from loadtest.reliability.chaos import TWO_AT_ONCE
from loadtest.reliability.planted import BUGS
from loadtest.reliability.sections import NAME, Section, sections_of

__all__ = ["DOCUMENT", "main", "markdown"]

DOCUMENT = Path(__file__).resolve().parents[2] / "docs" / "reliability.md"

HEAD = """# Reliability

Made by `python -m loadtest.reliability.document` from `loadtest/results/reliability.json`, never by hand.

Each run is a whole service of plain processes, open-loop traffic of several tenants by the client library
and by raw stubs, some of it rude, and one fault. The model of most runs is `chain`: its answers carry the
session that it believes it serves, the ordinal, and a hash chain over every input of the session so far, for
each denoising step. Clients write histories, the service counts; ten pure validators read both.
"""

TITLES = {
    "faults": "All kinds of fault",
    "repeated": "The same blow again and again",
    "pocket": "A model that makes pictures",
    "leaks": "What sessions leave behind",
    "calm": "Half an hour without a fault, beside busy loops",
}

PROMISES = """## Promises

| promise | judged by |
|---|---|
| P1 every frame has one outcome: a picture, a drop with its reason, or the stream's end | V1, V9 |
| P2 outcomes come in order, none twice, also over resumes and moves | V2, V3 |
| P3 no session sees another one's picture or state | V4 |
| P4 with a budget, nothing older than it is delivered | V5 |
| P5 everything is bounded | `tests/ingress/test_stream_limits.py` |
| P6 what is not served is refused at once, with a hint | V6 |
| P7 after a fault the session goes on, and says how exactly: EXACT is bit-equal | V8, campaign `pocket` |
| P8 slots, leases, tasks and descriptors come back | V7, campaign `leaks`, `test_cleanup.py` |
| P9 ends have a listed status and reason, and tell nothing of the inside | V10 |
| P10 a token that is worth nothing opens nothing | V10, `tests/ingress/test_auth.py` |

Not promised: that a frame is processed exactly once through a crash, that two faults at once are survived
(below is what they do), and anything about clusters and GPUs on which it was not run.
"""


def markdown(result: ResultFile) -> str:
    """The document."""
    parts = sections_of(result)
    lines = [HEAD, PROMISES, *_what_was_run(parts.values())]
    if "faults" in parts:
        kinds = parts["faults"].detail["summary"]
        lines += [*_kinds(kinds), *_two(kinds)]
    return "\n".join([*lines, *_nodes(), *_again(), *_attacks()])


def _what_was_run(sections: Iterable[Section]) -> Iterator[str]:
    yield "## What was run\n"
    for section in sections:
        machine, (low, high) = section.machine, section.load
        yield f"### {TITLES[section.name]}\n"
        yield (
            f"`{section.command}` on {machine['date'][:10]}, commit {machine['commit']}: {machine['cpu']},"
            f" {machine['cores']} cores, Python {machine['python']}. The machine's load average was {low:g}"
            f" to {high:g} meanwhile, the service and its clients included.\n"
        )
        yield "| figure | measured with | value | target | |"
        yield "|---|---|---:|---:|---|"
        for figure in section.figures:
            value = f"{figure.value:,.6g}" if not figure.unit else figure.value_text
            yield f"| {figure.what} | {figure.setting} | {value} | {figure.target_text} | {figure.met_text} |"
        yield from (f"\nNot to be relied on: {problem}." for problem in section.problems)
        yield ""


def _kinds(summary: Sequence[Mapping[str, Any]]) -> Iterator[str]:
    yield "## By kind of fault\n"
    yield (
        "*Moved*: notices of sessions that went on in another lane, by what they said of the past. *Resumed*:"
        " by their clients, over another connection. *Ended*: with a status and a reason, and opened anew by"
        " the client. *Hurt*: streams whose lane or ingress the victim was part of, and that had frames left"
        " to send. *Back*: from the fault to their first picture of a frame that was sent after it, in the"
        " same session. *Never*: neither back nor ended with a reason. *Wrong*: what the validators found."
        " Runs in which the armed place was not reached are no fault runs.\n"
    )
    yield (
        "| fault | runs | not reached | frames | moved exact / approximate / reset | resumed | ended"
        " | hurt | back p50 | worst | never | wrong |"
    )
    yield "|---|---:|---:|---:|---:|---:|---:|---:|---:|---:|---:|---:|"
    for entry in summary:
        yield _line(entry)
    yield ""


def _line(entry: Mapping[str, Any]) -> str:
    moved = entry["moved"]
    said = f"{moved['exact']} / {moved['approximate']} / {moved['reset']}"
    missed = 0 if entry["kind"] == "none" else entry["runs"] - entry["reached"]
    p50, worst = ("" if entry[name] is None else f"{entry[name]:.2f} s" for name in ("p50_s", "worst_s"))
    return (
        f"| {entry['kind']} | {entry['runs']} | {missed or ''} | {entry['frames']:,} | {said} |"
        f" {entry['resumed']} | {entry['ended_announced']} | {entry['hurt']} | {p50} | {worst} |"
        f" {entry['never']} | {entry['violations']} |"
    )


def _two(summary: Sequence[Mapping[str, Any]]) -> Iterator[str]:
    entries = [entry for entry in summary if entry["kind"] in TWO_AT_ONCE]
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


def _nodes() -> Iterator[str]:
    path = RESULTS / f"{nodes.NAME}.json"
    if path.exists():
        yield from nodes.section(ResultFile.read(path))


def _again() -> Iterator[str]:
    yield "## Who checks the checker\n"
    yield "Each of these bugs is planted into the service in CI, and must be found by its validator.\n"
    for name, bug in BUGS.items():
        yield f"* {name}: {bug.validator}"
    yield (
        "\n`make chaos` runs all kinds many times. A run that finds something keeps its history, its logs and"
        " the command that makes it again, `rearview chaos --runs 1 --seed … --kind …`.\n"
    )


def _attacks() -> Iterator[str]:
    yield "## What attacks had found\n"
    yield (
        "Faults of an earlier commit, a2414e9, and what would find each of them again. Tests are named"
        " without `tests/`; those of 12 that start Ray, and the figures of 5"
        " (`python -m loadtest.admission`), are no part of the default suite.\n"
    )
    yield "| # | tried | seen then | tests |"
    yield "|---:|---|---|---|"
    for number, attack in ATTACKS.items():
        tests = "<br>".join(f"`{test}`" for test in attack.tests)
        yield f"| {number} | {attack.tried} | {attack.seen} | {tests} |"
    yield ""


def main(
    results: Annotated[Path, typer.Option(help="Folder of the result file.")] = RESULTS,
    into: Annotated[Path, typer.Option(help="The document.")] = DOCUMENT,
) -> None:
    """Write the document."""
    into.write_text(markdown(ResultFile.read(results / f"{NAME}.json")), encoding="utf-8")


if __name__ == "__main__":
    typer.run(main)
