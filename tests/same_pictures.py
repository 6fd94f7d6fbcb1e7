"""Prove that a change of code changed no picture: the same scenarios with another commit and with this tree.

    make same-pictures AGAINST=<commit>
    python tests/same_pictures.py [COMMIT] [--only PATTERN] [--list] [--keep FOLDER]

The other commit is checked out into a temporary folder; this tree is taken as it is, uncommitted changes
included. Both translate the same frames on this machine, one after the other, through the whole service, in
float32 on one thread a span, and every picture is compared bit for bit. Exit code 1: a picture differs or is
missing. What surprises: the program that asks for the pictures is this tree's on both sides, so it uses
only what the client, the configuration and the local service export, which has to stay.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from fnmatch import fnmatchcase
from pathlib import Path
from tempfile import TemporaryDirectory

from pictures.compare import Verdict, compare, read_pictures, table
from pictures.scenarios import SCENARIOS, Scenario
from pictures.services import SERVICES, write_inputs
from pictures.translate import NOT_STARTED

TESTS = Path(__file__).resolve().parent
ROOT = TESTS.parent
TRIES = 2
"""Of the start of a service."""


@dataclass(frozen=True, slots=True)
class Side:
    """One version of the service."""

    label: str
    services: Path
    """The folder that holds its package `rearview`."""
    pictures: Path
    """Where its pictures go."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Exit code: 0 if every picture is the same on both sides, 2 if nothing could be compared."""
    asked = _parser().parse_args(arguments)
    chosen = [each for each in SCENARIOS if fnmatchcase(each.name, f"*{asked.only}*")]
    if asked.list:
        print(*(f"{each.name}  {each.frames}" for each in chosen), sep="\n")
        return 0
    if not chosen:
        print(f"same_pictures: no scenario is like {asked.only!r}", file=sys.stderr)
        return 2
    started_s = time.monotonic()
    with ExitStack() as stack:
        temporary = Path(stack.enter_context(TemporaryDirectory(prefix="same-pictures-")))
        try:
            other = stack.enter_context(checkout(asked.commit, temporary / "other"))
        except subprocess.CalledProcessError as error:
            print(f"same_pictures: {asked.commit}: {error.stderr.strip()}", file=sys.stderr)
            return 2
        verdicts = compared(
            asked.commit, other, chosen, temporary, (asked.keep or temporary / "pictures").resolve()
        )
    print(*table(verdicts), sep="\n")
    failed = sum(not verdict.is_equal for verdict in verdicts)
    result = f"{failed} of {len(verdicts)} scenarios differ" if failed else "every picture is the same"
    print(f"{result}, {asked.commit} against this tree, {time.monotonic() - started_s:.0f} s")
    return 1 if failed else 0


@contextmanager
def checkout(commit: str, folder: Path) -> Iterator[Path]:
    """The files of `commit` in `folder`, until the block ends. Raises CalledProcessError: no such commit."""
    _git("worktree", "add", "--detach", str(folder), commit)
    try:
        yield folder
    finally:
        _git("worktree", "remove", "--force", str(folder))


def compared(
    commit: str, other: Path, scenarios: Sequence[Scenario], temporary: Path, out: Path
) -> list[Verdict]:
    """One side after the other: at a time they would take no less. Pictures go to folders in `out`."""
    inputs = temporary / "inputs"
    sides = (
        Side(commit, other / "services", out / "other"),
        Side("this tree", ROOT / "services", out / "this-tree"),
    )
    for folder in (inputs, *(side.pictures for side in sides)):
        folder.mkdir(parents=True, exist_ok=True)
    for each in (path for side in sides for path in side.pictures.glob("*.npz")):
        each.unlink()  # Of an earlier comparison.
    write_inputs(inputs)
    for side in sides:
        translate(side, scenarios, inputs, environment(side.services, temporary / "bytecode"))
    expected, found = (side.pictures for side in sides)
    return [
        compare(each.name, each.frames, read_pictures(expected, each.name), read_pictures(found, each.name))
        for each in scenarios
    ]


def environment(services: Path, bytecode: Path) -> dict[str, str]:
    """Of one side's processes. Ray's workers inherit it; its path comes before an installed package.

    Where Python is told to write no bytecode each of a dozen processes would compile torch for itself, in
    ten seconds: they may write it to the folder `bytecode`.
    """
    variables = {**os.environ, "PYTHONPATH": os.pathsep.join([str(services), str(TESTS)])}
    if variables.pop("PYTHONDONTWRITEBYTECODE", ""):
        variables["PYTHONPYCACHEPREFIX"] = str(bytecode)
    return variables


def translate(side: Side, scenarios: Sequence[Scenario], inputs: Path, variables: Mapping[str, str]) -> None:
    """Have the pictures of one side made, in a process of its own for each service."""
    for service in SERVICES:
        names = [scenario.name for scenario in scenarios if scenario.service == service]
        where = [str(side.services), service, str(inputs), str(side.pictures)]
        command = [sys.executable, "-m", "pictures.translate", side.label, *where, *names]
        for _ in range(TRIES if names else 0):
            code = subprocess.run(command, env=variables, cwd=inputs, check=False).returncode
            if code != NOT_STARTED:
                break


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description="Compare the pictures of another commit with this tree's.")
    parser.add_argument("commit", nargs="?", default="HEAD~1", help="default HEAD~1")
    parser.add_argument("--only", metavar="PATTERN", default="", help="scenarios like *PATTERN*")
    parser.add_argument("--list", action="store_true", help="name the scenarios and their frames")
    parser.add_argument("--keep", metavar="FOLDER", type=Path, help="keep the pictures there, as .npz")
    return parser


def _git(*arguments: str) -> None:
    command = ["git", "-c", "safe.directory=*", "-C", str(ROOT), *arguments]
    subprocess.run(command, check=True, capture_output=True, text=True)


if __name__ == "__main__":
    raise SystemExit(main())
