"""`rearview models list` and `models fetch`: models from the hub, with their licences first."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from rearview.cli.failure import fails_in_one_line, interrupt_on_sigterm
from rearview.cli.printing import JsonOption, print_json

if TYPE_CHECKING:
    from rearview.models import KnownModel, Listing, Progress

__all__ = ["fetch_shown", "fetch_wanted", "list_known"]

SHOW_EVERY_S = 2.0


@fails_in_one_line
def list_known(as_json: JsonOption = False) -> None:
    """Show the models that have a short name, and whether they are on this machine. Asks nobody."""
    from rearview.contract.card import bundled_names
    from rearview.models import known_models, models_folder

    listed = [*map(_bundled, bundled_names()), *map(_known, known_models().values())]
    if as_json:
        print_json(listed)
        return
    for one in listed:
        said = "What a service starts with where no --model is named."
        if one["state"] != "bundled":
            said = f"{one['title']}: {one['note']}"
        typer.echo(f"{one['id']:16} {one['state']:12} {said}")
        for each in one["repositories"]:
            typer.echo(f"{'':29} {each['hub_id']}: {each['licence']}, {each['licence_url']}")
    typer.echo(f"`rearview models fetch ID` puts them into {models_folder()}")


@fails_in_one_line
def fetch_wanted(
    name: Annotated[
        str, typer.Argument(metavar="ID", help="One of `models list`, or a hub id (owner/name).")
    ],
    yes: Annotated[bool, typer.Option("--yes", help="Do not ask before it is fetched.")] = False,
    folder: Annotated[
        Path | None, typer.Option(help="Where to. Default: where --model looks for it.")
    ] = None,
    as_json: JsonOption = False,
) -> None:
    """Fetch a model from the Hugging Face hub (HF_ENDPOINT, HF_TOKEN): licences and bytes are shown first.

    It goes on where an earlier try stopped, and every file is checked against its digest.
    """
    interrupt_on_sigterm()
    place = fetch_shown(name, folder=folder, asks=not yes)
    if as_json:
        print_json({"id": name, "folder": str(place)})
        return
    typer.echo(f"{name} is in {place}; use it with --model {name if folder is None else place}")


def _bundled(name: str) -> dict[str, Any]:
    return {"id": name, "state": "bundled", "title": None, "note": None, "folder": None, "repositories": []}


def _known(model: KnownModel) -> dict[str, Any]:
    from rearview.models import fetched, model_folder

    folder = model_folder(model.id)
    return {
        "id": model.id,
        "state": "here" if fetched(folder) else "not fetched",
        "title": model.title,
        "note": model.note,
        "folder": str(folder),
        "repositories": [
            {"hub_id": one.hub_id, "licence": one.licence.name, "licence_url": one.licence.url}
            for one in model.repositories
        ],
    }


def fetch_shown(name: str, *, folder: Path | None = None, asks: bool = False) -> Path:
    """Fetch a model, or find it: on stderr a line for each licence, then progress in bytes.

    `asks`: wait for a yes after the licences; a no ends the command. Raises FetchFailed.
    """
    from rich.console import Console

    from rearview.cli.progress import show_progress
    from rearview.models import fetch, fetched, list_files, model_folder, model_named

    model = model_named(name)
    place = folder or model_folder(name)
    if fetched(place):
        return place
    listing = list_files(model)
    for line in _terms(listing):
        typer.echo(line, err=True)
    if asks and not typer.confirm(f"fetch {model.title}?", err=True):
        raise typer.Abort
    with show_progress(Console(stderr=True)) as progress:
        return fetch(model, place, _Shown(model.title, progress.step), listing=listing)


def _terms(listing: Listing) -> list[str]:
    """What one agrees to."""
    lines = []
    for repository in listing.model.repositories:
        said = listing.licences.get(repository.hub_id, "")
        itself = f"; the repository says {said}" if said else ""
        lines.append(f"{repository.hub_id}: {repository.licence.name}, {repository.licence.url}{itself}")
    return [*lines, f"{listing.model.title}: {listing.num_bytes / 1e6:.0f} MB"]


class _Shown:
    """Progress as steps, not too many of them."""

    def __init__(self, title: str, on_step: Callable[[str], None]) -> None:
        self._title, self._on_step = title, on_step
        self._next_s = 0.0

    def __call__(self, progress: Progress) -> None:
        now_s = time.monotonic()
        if now_s < self._next_s and progress.bytes_done < progress.bytes_total:
            return
        self._next_s = now_s + SHOW_EVERY_S
        done, total = progress.bytes_done / 1e6, progress.bytes_total / 1e6
        self._on_step(f"fetching {self._title}: {done:.0f} of {total:.0f} MB")
