"""Models that are fetched from the Hugging Face hub: which there are, and how they come to this machine.

    model = model_named("sd-turbo")        # or any hub id, owner/name
    listing = list_files(model)            # bytes and licences, asked of the hub: show them first
    fetch(model, model_folder(model.id), on_progress, cancel, listing=listing)

Imports no torch, and `huggingface_hub` only when it is used. All calls block: run them in a thread. What goes
wrong is a FetchFailed with a `FetchReason`.
"""

from rearview.models.catalogue import (
    KnownModel,
    Licence,
    Repository,
    known_models,
    model_named,
    model_of_hub_id,
)
from rearview.models.failure import FetchFailed, FetchReason
from rearview.models.fetching import Progress, fetch, fetched, model_folder, models_folder
from rearview.models.listing import Listing, RemoteFile, list_files

__all__ = [
    "FetchFailed",
    "FetchReason",
    "KnownModel",
    "Licence",
    "Listing",
    "Progress",
    "RemoteFile",
    "Repository",
    "fetch",
    "fetched",
    "known_models",
    "list_files",
    "model_folder",
    "model_named",
    "model_of_hub_id",
    "models_folder",
]
