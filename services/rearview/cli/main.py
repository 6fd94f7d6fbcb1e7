"""The command `rearview`."""

from __future__ import annotations

from importlib.metadata import version
from typing import Annotated

import typer

from rearview.cli import laboratory, models, sessions
from rearview.cli.chaos import chaos
from rearview.cli.demo import demo
from rearview.cli.doctor import doctor
from rearview.cli.drain import drain
from rearview.cli.plan import plan
from rearview.cli.probe import probe
from rearview.cli.studio import studio
from rearview.cli.styles import styles
from rearview.cli.translate import TranslateCommand, translate
from rearview.cli.up import up
from rearview.cli.usage import usage
from rearview.environment import keep_compiled

__all__ = ["app"]

app = typer.Typer(
    no_args_is_help=True,
    pretty_exceptions_enable=False,
)


def _show_version(is_wanted: bool) -> None:
    if is_wanted:
        typer.echo(f"rearview {version('rearview')}")
        raise typer.Exit


@app.callback()
def rearview(
    is_wanted: Annotated[
        bool,
        typer.Option("--version", help="Show the version and exit.", is_eager=True, callback=_show_version),
    ] = False,
) -> None:
    """Live video translation with diffusion models: serve it, use it, look after it."""
    keep_compiled()


app.command()(up)
app.command()(studio)
app.command()(demo)
app.command(cls=TranslateCommand)(translate)
app.add_typer(sessions.app, name="sessions")
app.command()(drain)
app.command()(probe)
app.command()(usage)
app.command()(doctor)
app.command()(plan)
app.command(context_settings=laboratory.UNREAD)(chaos)
app.command("eval", context_settings=laboratory.UNREAD)(laboratory.evaluate)
app.add_typer(laboratory.train, name="train")
models.app.command()(styles)
app.add_typer(models.app, name="models")


if __name__ == "__main__":
    app()
