"""What commands print on stdout: tables for people, JSON for programs (docs/cli.md has every shape)."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from rich.console import Console

__all__ = ["JsonOption", "people_console", "print_json", "table_console"]

JsonOption = Annotated[bool, typer.Option("--json", help="Print JSON on stdout, on one line.")]
UNBROKEN = 10_000
"""Columns."""


def print_json(content: object) -> None:
    """On a line of its own."""
    typer.echo(json.dumps(content))


def table_console() -> Console:
    """Stdout. Where no terminal is, a row stays on one line, and nothing is cut off or coloured."""
    from rich.console import Console

    console = Console()
    return console if console.is_terminal else Console(width=UNBROKEN, color_system=None)


def people_console(*, as_json: bool) -> Console:
    """Where people read on: stdout, or stderr where stdout is for a program."""
    from rich.console import Console

    return Console(stderr=as_json)
