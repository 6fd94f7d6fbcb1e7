"""Files and folders that an option names: on this machine, or on the Hugging Face hub.

What is neither is a ConfigError that names the option.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from rearview.contract.card import is_hub_id
from rearview.errors import ConfigError

__all__ = ["existing_file", "find_file", "folder_with_config", "hub_folder"]


def folder_with_config(option: str, name: str, places: Sequence[Path], what: str) -> Path:
    """The first of `places` with settings. `what`: what was looked for. Raises ConfigError."""
    for place in places:
        if (place / "config.json").is_file():
            return place
    raise ConfigError(f"{option} {name!r} is neither a folder with {what} (config.json) nor a hub id")


def find_file(option: str, path: str) -> Path:
    """A file on this machine, or one in a repository on the hub (owner/name/file). Raises ConfigError."""
    names = path.split("/")
    if Path(path).is_file():
        return Path(path)
    if len(names) > 2 and is_hub_id("/".join(names[:2])):
        name = "/".join(names[2:])
        return existing_file(option, hub_folder(option, "/".join(names[:2]), (name,)) / name)
    raise ConfigError(
        f"{option} {path!r} is neither a file, nor a folder, nor on the hub (owner/name[/file])"
    )


def existing_file(option: str, path: Path) -> Path:
    """`path`. Raises ConfigError if there is no such file."""
    if not path.is_file():
        raise ConfigError(f"{option} {str(path)!r} is not a file")
    return path


def hub_folder(option: str, repo: str, patterns: Sequence[str]) -> Path:
    """What of a repository's files has these names, in a folder here. Raises ConfigError."""
    from huggingface_hub import snapshot_download

    try:
        return Path(snapshot_download(repo, allow_patterns=list(patterns)))
    except Exception as error:  # Whatever its client raises (httpx's errors change), nothing was found.
        reason = type(error).__name__
        text = "is not on this machine, and the Hugging Face hub did not give it"
        raise ConfigError(
            f"{option} {repo!r} {text} ({reason}): name a folder, or check the network"
        ) from None
