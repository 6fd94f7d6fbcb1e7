"""What every network's loading shares: libraries kept quiet and offline, nothing missing, nothing left over.

Where the weights lie is `formats.py`. Whatever a network lacks is a ConfigError at start, and so is a weight
that is not finite: no network runs with weights that were not loaded.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from huggingface_hub.errors import StrictDataclassError
from safetensors import SafetensorError

from rearview.engine.devices import memory_format
from rearview.engine.networks.finite import is_finite
from rearview.engine.weights.formats import Source, from_original, read_weights
from rearview.errors import ConfigError

__all__ = [
    "assigned",
    "check_finite",
    "checked",
    "filled",
    "load_folder",
    "load_network",
    "local",
    "quiet_libraries",
    "ready",
    "variant",
]

LOADING_ERRORS = (
    *(OSError, ValueError, RuntimeError, TypeError, LookupError),
    *(SafetensorError, StrictDataclassError),
)
"""What the libraries raise over files that are not what they should be."""


def load_network(network: Any, source: Source, part: str, dtype: torch.dtype) -> Any:
    """A network of diffusers' from its folder or from the single file."""
    if (file := source.single_file(part)) is not None:
        config = source.config(part)
        with torch.device("meta"):  # No time is spent on weights that are replaced.
            empty = network.from_config(config)
        return filled(empty, file, part, from_original(part, read_weights(file)[0], config), dtype)
    return load_folder(network, source.place(part), dtype)


def load_folder(network: Any, folder: Path, dtype: torch.dtype) -> Any:
    """A network of diffusers' from its folder."""
    loaded, report = local(
        network.from_pretrained,
        folder,
        torch_dtype=dtype,
        variant=variant(folder),
        # Diffusers finds pickled shards only if it is not to look for others.
        use_safetensors=None if any(folder.glob("*.safetensors")) else False,
        output_loading_info=True,
    )
    return checked(loaded, folder, report["missing_keys"])


def filled(network: Any, file: Path, part: str, weights: dict[str, torch.Tensor], dtype: torch.dtype) -> Any:
    """`network` with all of `weights` and no others."""
    if not weights:
        raise ConfigError(f"model.checkpoint: {file} holds no {part}")
    return assigned(network, weights, dtype, f"{file} does not fit model.single_file_config in {part}")


def assigned(network: Any, weights: Mapping[str, torch.Tensor], dtype: torch.dtype, misfit: str) -> Any:
    """`network` with these weights. `misfit`: what is said if they are not all that it has."""
    try:
        network.load_state_dict({key: value.to(dtype) for key, value in weights.items()}, assign=True)
    except RuntimeError as error:
        raise ConfigError(f"{misfit}: {' '.join(str(error).split())[:300]}") from None
    return network.to(dtype)


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


def quiet_libraries() -> None:
    """Keep the model libraries' progress bars and advice out of a service's log."""
    from diffusers.utils import logging as diffusers_logging
    from transformers.utils import logging as transformers_logging

    for library in (diffusers_logging, transformers_logging):
        library.set_verbosity_error()
        library.disable_progress_bar()
