"""`rearview doctor`: whether this machine can run the service and the client, and what to do if not."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Annotated

import typer

from rearview.cli.checks import CHECKS, Check, Verdict, check_config, check_ray
from rearview.cli.failure import fails_in_one_line
from rearview.cli.printing import JsonOption, print_json

__all__ = ["doctor"]

COLOURS = {Verdict.OK: "green", Verdict.WARN: "yellow", Verdict.FAIL: "red"}


@fails_in_one_line
def doctor(
    ray: Annotated[bool, typer.Option(help="Also start a Ray of one CPU and stop it (seconds).")] = True,
    config: Annotated[
        Path | None, typer.Option(help="Also say what this deployment's replicas would compute on here.")
    ] = None,
    record: Annotated[
        Path | None,
        typer.Option(help="Also translate a few frames and write to this JSON file how it went, to be sent."),
    ] = None,
    as_json: JsonOption = False,
) -> None:
    """Check what the service needs on this machine. Exit code 0: it can run; 1: something is missing, or a
    recorded run gave no pictures; 2: wrong options.
    """
    if record is not None and not record.absolute().parent.is_dir():
        raise FileNotFoundError(f"{record}: there is no folder {record.parent}")
    show = list if as_json else _show
    told: list[Check] = []
    for check in CHECKS:
        told += show(check())
    if config is not None:
        from rearview.config import load_config

        told += show(check_config(load_config(config)))
    if ray:
        told += show(check_ray())
    works = True
    if record is not None:
        from rearview.cli.recording import record as try_it

        say = partial(typer.echo, err=as_json)
        found = try_it(told, say)
        found.write(record)
        for way in found.ways:
            found_well = f"{way.frame_ms} ms a frame, {way.mean_difference} levels from the CPU's pictures"
            say(f"     {way.name:<15}{way.error or found_well}")
        say(f"wrote {record}: nothing in it says who or where you are; please attach it to an issue")
        works = found.works
    works = works and not any(check.verdict is Verdict.FAIL for check in told)
    if as_json:
        checks = [asdict(check) | {"verdict": check.verdict.value} for check in told]
        print_json({"works": works, "checks": checks})
    if not works:
        raise typer.Exit(1)


def _show(results: Iterable[Check]) -> list[Check]:
    """Print them as they come."""
    told = []
    for check in results:
        told.append(check)
        remedy = f"  -> {check.remedy}" if check.remedy else ""
        verdict = typer.style(f"{check.verdict.value:<5}", fg=COLOURS[check.verdict])
        typer.echo(f"{verdict}{check.name:<15}{check.text}{remedy}")
    return told
