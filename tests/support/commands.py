"""Whether a command line that a document shows is one of ours: its commands and options, not its values."""

from __future__ import annotations

from collections.abc import Sequence

import click
from rearview.cli.main import app
from typer.main import get_command

__all__ = ["check_command"]


def check_command(words: Sequence[str]) -> None:
    """`words`: what follows `rearview`. Raises click.UsageError for what it does not know."""
    command: click.Command = get_command(app)
    context, left = click.Context(command, info_name="rearview"), list(words)
    while isinstance(command, click.Group):
        found = command.get_command(context, left[0]) if left else None
        if found is None:
            raise click.UsageError(f"no such command: {' '.join(words)}")
        context = click.Context(found, parent=context, info_name=left.pop(0))
        command = found
    values, extra, _ = command.make_parser(context).parse_args(left)
    if extra and not context.allow_extra_args:
        raise click.UsageError(f"what is {extra} in {' '.join(words)}?")
    wanted = {each.name for each in command.params if isinstance(each, click.Argument) and each.required}
    if missing := {name for name in wanted if name and values.get(name) is None}:
        raise click.UsageError(f"{missing} missing in {' '.join(words)}")
