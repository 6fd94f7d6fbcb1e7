"""What every network's loading shares: libraries kept offline, nothing missing.

Where the weights lie is `formats.py`. Whatever a network lacks is a ConfigError at start, and so is a weight
that is not finite: no network runs with weights that were not loaded.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from huggingface_hub.errors import StrictDataclassError
from safetensors import SafetensorError

from rearview.engine.devices import memory_format
from rearview.engine.networks.finite import is_finite
from rearview.errors import ConfigError

__all__ = ["check_finite", "checked", "load_folder", "local", "ready", "variant"]

LOADING_ERRORS = (
    *(OSError, ValueError, RuntimeError, TypeError, LookupError),
    *(SafetensorError, StrictDataclassError),
)
"""What the libraries raise over files that are not what they should be."""


def local(load: Callable[..., Any], folder: Path, **arguments: Any) -> Any:
    """What a library loads from a folder, without asking the hub for what is not there."""
    try:
        return load(folder, local_files_only=True, **arguments)
    except LOADING_ERRORS as error:
        raise ConfigError(f"{folder} cannot be loaded: {' '.join(str(error).split())[:300]}") from None


def variant(folder: Path) -> str | None:
    """`fp16` if a folder has its weights only so: whole or in shards, as safetensors or pickled."""
    files = [*folder.glob("*.safetensors"), *folder.glob("*.bin")]
    return "fp16" if files and all(re.search(r"\.fp16[.-]", file.name) for file in files) else None


def checked(network: Any, folder: Path, missing: Sequence[str]) -> Any:
    if missing:
        raise ConfigError(f"{folder} lacks {len(missing)} weights, for instance {sorted(missing)[0]}")
    return network


def ready(network: Any, device: torch.device, place: Path, unreached: str | None = None) -> Any:
    """`unreached`: first part of the names of weights that are not there and not used."""
    network = network.eval().requires_grad_(False).to(device=device, memory_format=memory_format(device))
    check_finite(network, place, unreached)
    return network


def check_finite(network: Any, place: Path, unreached: str | None = None) -> None:
    """Raises ConfigError: with one such weight every picture is grey, and nothing says why."""
    for name, weight in network.state_dict().items():
        if is_finite(weight) or (unreached is not None and name.startswith(unreached)):
            continue
        count, kind = int((~weight.isfinite()).sum()), str(weight.dtype).removeprefix("torch.")
        text = f"{count} of {weight.numel()} weights of {name} are not finite in {kind}"
        raise ConfigError(f"{place}: {text}: the file is damaged, or model.dtype is too narrow for it")


def load_folder(network: Any, folder: Path, dtype: torch.dtype) -> Any:
    """A network of diffusers' from its folder."""
    loaded, report = local(
        network.from_pretrained,
        folder,
        torch_dtype=dtype,
        variant=variant(folder),
        output_loading_info=True,
    )
    return checked(loaded, folder, report["missing_keys"])
