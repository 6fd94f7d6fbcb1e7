"""`rearview chaos`: the way into the reliability suite, which lives beside the service in a checkout."""

from __future__ import annotations

import sys
from importlib import import_module
from pathlib import Path

import typer

from rearview.cli.failure import fails_in_one_line

__all__ = ["chaos"]

SUITE = Path("loadtest/reliability/chaos.py")


@fails_in_one_line
def chaos(context: typer.Context) -> None:
    """Hurt a service of plain processes and judge it (in a checkout); `rearview chaos --help` lists more."""
    root = Path.cwd()
    if not (root / SUITE).is_file():
        typer.secho(
            "error: the reliability suite is not here: call it in the root of a checkout", fg="red", err=True
        )
        raise typer.Exit(1)
    sys.path[:0] = [str(root), str(root / "tests")]
    app = typer.Typer(add_completion=False, pretty_exceptions_enable=False)
    app.command()(import_module("loadtest.reliability.chaos").main)
    app(context.args, prog_name="rearview chaos")
