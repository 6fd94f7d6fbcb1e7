"""`rearview train` and `rearview eval`: the way into the laboratory, a distribution of its own.

Nothing of `rearview` imports `rearview_lab`. Its commands are found by name when they are run, and get their
options unread; where the laboratory is not installed, one line says how to install it.
"""

from __future__ import annotations

from importlib import import_module
from importlib.util import find_spec
from typing import Any

import typer

from rearview.cli.failure import fails_in_one_line

__all__ = ["NEEDED", "evaluate", "train"]

NEEDED = ("rearview_lab", "cv2", "skimage", "tokenizers")
"""What the laboratory imports and the service does not."""
INSTALL = "pip install 'rearview[lab]'; in a checkout: pip install -e services/rearview_lab"
UNREAD = {"allow_extra_args": True, "ignore_unknown_options": True, "help_option_names": []}

train = typer.Typer(no_args_is_help=True, help="Train models (needs the extra `lab`).")


@train.callback()
def _train() -> None:
    """Train models (needs the extra `lab`)."""


@train.command(context_settings=UNREAD)
@fails_in_one_line
def pocket(context: typer.Context) -> None:
    """Train the pocket model; `rearview train pocket --help` lists the options of the training."""
    _laboratory("training.command").main(context.args, prog="rearview train pocket")


@fails_in_one_line
def evaluate(context: typer.Context) -> None:
    """Measure flicker, looks and drift (needs the extra `lab`); `rearview eval --help` lists the options."""
    _laboratory("evaluation.command").app(context.args, prog_name="rearview eval")


def _laboratory(module: str) -> Any:
    """A module of the laboratory. Ends the command, before anything heavy is imported, if there is none."""
    for name in NEEDED:
        if find_spec(name) is None:
            typer.secho(f"error: {name} is missing: {INSTALL}", fg="red", err=True)
            raise typer.Exit(1)
    return import_module(f"rearview_lab.{module}")
