"""The command `rearview`."""

from __future__ import annotations

import typer

from rearview.cli import laboratory, models, sessions
from rearview.cli.chaos import chaos
from rearview.cli.demo import demo
from rearview.cli.doctor import doctor
from rearview.cli.drain import drain
from rearview.cli.translate import translate
from rearview.cli.up import up

__all__ = ["app"]

app = typer.Typer(
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    help="Live video translation with diffusion models: serve it, use it, look after it.",
)
app.command()(up)
app.command()(demo)
app.command()(translate)
app.add_typer(sessions.app, name="sessions")
app.command()(drain)
app.command()(doctor)
app.command(context_settings=laboratory.UNREAD)(chaos)
app.command("eval", context_settings=laboratory.UNREAD)(laboratory.evaluate)
app.add_typer(laboratory.train, name="train")
app.add_typer(models.app, name="models")


if __name__ == "__main__":
    app()
