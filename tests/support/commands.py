"""Whether a command line that a document shows is one of ours: its commands and options, not its values."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from rearview.cli.main import app
from typer.main import get_command

__all__ = ["check_command"]


def check_command(words: Sequence[str]) -> None:
    """`words`: what follows `rearview`. Raises LookupError for a command, an option or an argument that is
    not there, and for an argument that is missing.
    """
    command: Any = get_command(app)
    context, left = command.context_class(command, info_name="rearview"), list(words)
    while hasattr(command, "get_command"):
        found = command.get_command(context, left[0]) if left else None
        if found is None:
            raise LookupError(f"no such command: {' '.join(words)}")
        context = found.context_class(found, parent=context, info_name=left.pop(0))
        command = found
    try:
        values, extra, _ = command.make_parser(context).parse_args(left)
    except Exception as error:  # A usage error of whichever click typer has.
        raise LookupError(f"{' '.join(words)}: {error}") from error
    if extra and not context.allow_extra_args:
        raise LookupError(f"no such argument: {extra} in {' '.join(words)}")
    arguments = [each for each in command.params if each.param_type_name == "argument"]
    if missing := [each.name for each in arguments if each.required and not values.get(each.name)]:
        raise LookupError(f"missing: {missing} in {' '.join(words)}")
