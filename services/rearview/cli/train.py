"""`rearview train`: make the bundled checkpoint anew; the work is in `rearview_lab.training`."""

from __future__ import annotations

import sys

import typer

from rearview.cli.failure import fails_in_one_line

__all__ = ["app"]

app = typer.Typer(no_args_is_help=True, help="Train models (needs the `training` extra).")


@app.callback()
def train() -> None:
    """Train models."""


@app.command(
    context_settings={"allow_extra_args": True, "ignore_unknown_options": True, "help_option_names": []}
)
@fails_in_one_line
def pocket(context: typer.Context) -> None:
    """Train the pocket model; `rearview train pocket --help` lists the options of the training."""
    try:
        from rearview_lab.training.pocket import main
    except ModuleNotFoundError as error:
        if error.name is None or error.name.startswith("rearview"):
            raise
        typer.secho(f"error: {error.name} is missing: pip install 'rearview[training]'", fg="red", err=True)
        raise typer.Exit(1) from None
    sys.argv = ["rearview train pocket", *context.args]
    main()
