"""`rearview models styles`: what a model was taught by name."""

from __future__ import annotations

from typing import Annotated

import typer

from rearview.cli.failure import fails_in_one_line
from rearview.cli.printing import JsonOption, print_json

__all__ = ["styles"]


@fails_in_one_line
def styles(
    checkpoint: Annotated[str, typer.Argument(help="Bundled name or folder.")] = "pocket",
    phrases: Annotated[bool, typer.Option("--phrases", help="Also all the words that it knows.")] = False,
    as_json: JsonOption = False,
) -> None:
    """List the styles that a model knows by name, with a prompt for each."""
    from rearview.contract.card import ModelCard

    card = ModelCard.read(checkpoint)
    if as_json:
        print_json(
            [
                {"name": name, "prompt": prompt, "phrases": list(card.phrases.get(name, ()))}
                for name, prompt in sorted(card.styles.items())
            ]
        )
        return
    if not card.styles:
        typer.echo(f"{checkpoint} names no styles: it takes any prompt")
        return
    longest = max(map(len, card.styles))
    for name, prompt in sorted(card.styles.items()):
        typer.echo(f"{name:<{longest}}  {prompt}")
        if phrases:
            typer.echo(f"{'':<{longest}}  also: {', '.join(card.phrases.get(name, ()))}")
