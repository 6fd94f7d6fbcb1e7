"""Which files a model is made of: asked of the hub, or of its cache on this machine if it does not answer."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rearview.models.catalogue import XL_PARTS, KnownModel, Repository
from rearview.models.failure import FetchFailed, FetchReason

__all__ = ["Listing", "RemoteFile", "list_files", "matches", "wanted_files"]

TIMEOUT_S = 10.0
WEIGHTS = {
    **dict.fromkeys(("text_encoder", "text_encoder_2"), ("model", "pytorch_model")),
    "lcm_lora": ("pytorch_lora_weights",),
}
"""Names of weights by folder of the model; of all others they are the following."""
DEFAULT_WEIGHTS = ("diffusion_pytorch_model",)
ENDINGS = (
    r"\.fp16\.safetensors",
    r"(\.fp16-\d+-of-\d+|-\d+-of-\d+\.fp16)\.safetensors",
    r"\.safetensors",
    r"-\d+-of-\d+\.safetensors",
    r"\.fp16\.bin",
    r"\.bin",
)
"""Of weights, the best first: half the bytes, and nothing that is pickled where it can be avoided."""
SETTINGS = re.compile(r"[^/]+\.(json|txt)")
OPTIONAL = ("motion_adapter", *XL_PARTS)


@dataclass(frozen=True, slots=True)
class RemoteFile:
    """One file of a model."""

    target: str
    """Its path in the model's folder."""
    num_bytes: int
    hub_id: str
    commit: str
    name: str
    """Its path in the repository."""
    sha256: str = ""
    """Of a large file."""
    blob: str = ""
    """Git's digest of a small one."""
    cached: Path | None = None
    """Where it lies on this machine already."""


@dataclass(frozen=True, slots=True)
class Listing:
    """All files of a model, as the hub lists them now."""

    model: KnownModel
    files: tuple[RemoteFile, ...]
    commits: Mapping[str, str]
    """Hub id to the commit that was listed."""
    licences: Mapping[str, str]
    """Hub id to what the repository itself says of its licence; empty where it says nothing."""

    @property
    def num_bytes(self) -> int:
        return sum(file.num_bytes for file in self.files)


def wanted_files(names: Iterable[str], repository: Repository) -> dict[str, str]:
    """Of all names in a repository those that are fetched, each with its place in the model's folder.

    Raises FetchFailed(INCOMPLETE) for a folder without its settings or weights.
    """
    wanted: dict[str, str] = {}
    known = set(names)
    for source, target in repository.folders.items():
        start = f"{source}/" if source else ""
        inside = [name.removeprefix(start) for name in known if name.startswith(start)]
        found = [name for name in inside if "/" not in name]
        chosen = list(_chosen(found, target))
        if not chosen and target in OPTIONAL:
            continue
        if not chosen or (_has_weights(target) and all(map(SETTINGS.fullmatch, chosen))):
            text = f"{repository.hub_id} has no {'settings' if not chosen else 'weights'} of a {target}"
            raise FetchFailed(FetchReason.INCOMPLETE, text)
        wanted |= {start + name: f"{target}/{name}" for name in chosen}
    return wanted


def _has_weights(target: str) -> bool:
    return target not in ("tokenizer", "tokenizer_2", "scheduler")


def _chosen(names: list[str], target: str) -> Iterator[str]:
    yield from sorted(name for name in names if SETTINGS.fullmatch(name) and target != "lcm_lora")
    if not _has_weights(target):
        return
    for ending in ENDINGS:
        for base in WEIGHTS.get(target, DEFAULT_WEIGHTS):
            pattern = re.compile(re.escape(base) + ending)
            if weights := sorted(name for name in names if pattern.fullmatch(name)):
                yield from weights
                return


def list_files(model: KnownModel, endpoint: str | None = None) -> Listing:
    """Ask the hub; if it cannot be reached, look into its cache. Raises FetchFailed.

    `endpoint`: address of the hub; None: that of HF_ENDPOINT, else the public one.
    """
    files: list[RemoteFile] = []
    commits, licences = {}, {}
    for repository in model.repositories:
        try:
            commit, licence, found = _ask(repository, endpoint)
        except FetchFailed as failure:
            if failure.reason is not FetchReason.OFFLINE:
                raise
            commit, licence, found = _cached(repository, failure)
        commits[repository.hub_id], licences[repository.hub_id] = commit, licence
        files += found
    return Listing(model, tuple(files), commits, licences)


def _ask(repository: Repository, endpoint: str | None) -> tuple[str, str, list[RemoteFile]]:
    from huggingface_hub import HfApi
    from huggingface_hub import errors as hub

    hub_id = repository.hub_id
    try:
        info = HfApi(endpoint=endpoint).model_info(
            hub_id, revision=repository.revision, files_metadata=True, timeout=TIMEOUT_S
        )
    except hub.GatedRepoError:
        raise FetchFailed(FetchReason.GATED, f"{hub_id} is behind a form") from None
    except (hub.RepositoryNotFoundError, hub.RevisionNotFoundError, hub.HFValidationError) as error:
        # The hub answers 401 for what is private and for what is not there alike.
        what = "revision" if isinstance(error, hub.RevisionNotFoundError) else "repository"
        raise FetchFailed(FetchReason.NOT_FOUND, f"the hub has no {what} {hub_id}") from None
    except hub.HfHubHTTPError as error:
        status = error.response.status_code
        if status in (401, 403):
            raise FetchFailed(FetchReason.GATED, f"the hub does not give {hub_id} to you") from None
        raise FetchFailed(FetchReason.OFFLINE, f"the hub answered {status} for {hub_id}") from None
    except Exception as error:  # Whatever the hub's client raises (its errors change): it has no answer.
        text = f"the hub cannot be reached for {hub_id} ({type(error).__name__})"
        raise FetchFailed(FetchReason.OFFLINE, text) from None
    siblings = {one.rfilename: one for one in info.siblings or ()}
    commit = str(info.sha)
    files = [
        _remote(repository, commit, name, target, siblings[name])
        for name, target in wanted_files(siblings, repository).items()
    ]
    return commit, _licence(info.card_data), files


def _remote(repository: Repository, commit: str, name: str, target: str, sibling: Any) -> RemoteFile:
    from huggingface_hub import try_to_load_from_cache

    lfs = sibling.lfs
    cached = try_to_load_from_cache(repository.hub_id, name, revision=commit)
    if sibling.size is None:
        raise FetchFailed(FetchReason.INCOMPLETE, f"the hub says no size of {repository.hub_id}/{name}")
    return RemoteFile(
        target,
        int(sibling.size),
        repository.hub_id,
        commit,
        name,
        sha256="" if lfs is None else str(lfs.sha256),
        blob="" if lfs is not None else str(sibling.blob_id or ""),
        cached=Path(cached) if isinstance(cached, str) else None,
    )


def _licence(card: Any) -> str:
    """As the repository names it; `other` has a name of its own beside it."""
    said = {} if card is None else card.to_dict()
    return str(said.get("license_name") or said.get("license") or "")


def _cached(repository: Repository, failure: FetchFailed) -> tuple[str, str, list[RemoteFile]]:
    """What the hub's own cache holds of a repository. Raises `failure` if that is not all."""
    folder = _snapshot(repository)
    if folder is None:
        raise failure from None
    names = [path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()]
    try:
        wanted = wanted_files(names, repository)
    except FetchFailed:
        raise failure from None
    files = [
        RemoteFile(
            target,
            (folder / name).stat().st_size,
            repository.hub_id,
            folder.name,
            name,
            sha256=_digest_in_cache(folder / name),
            cached=folder / name,
        )
        for name, target in wanted.items()
    ]
    return folder.name, "", files


def _snapshot(repository: Repository) -> Path | None:
    """The folder of the cache with the newest known files of a repository."""
    from huggingface_hub import try_to_load_from_cache

    for source, target in repository.folders.items():
        start = f"{source}/" if source else ""
        weights = (f"{base}.safetensors" for base in WEIGHTS.get(target, DEFAULT_WEIGHTS))
        for name in ("config.json", *weights):
            found = try_to_load_from_cache(repository.hub_id, start + name, revision=repository.revision)
            if isinstance(found, str):
                return Path(found.removesuffix(start + name))
    return None


def _digest_in_cache(path: Path) -> str:
    """The cache names a large file by its digest."""
    name = path.resolve().name
    return name if re.fullmatch(r"[0-9a-f]{64}", name) else ""


def matches(path: Path, file: RemoteFile) -> bool:
    """Whether the bytes at `path` are those of `file`. Reads all of them."""
    if path.stat().st_size != file.num_bytes:
        return False
    if not file.sha256 and not file.blob:
        return True  # Nobody says more of it.
    digest = hashlib.sha256() if file.sha256 else hashlib.sha1(b"blob %d\0" % file.num_bytes)
    with path.open("rb") as opened:
        while chunk := opened.read(1 << 20):
            digest.update(chunk)
    return digest.hexdigest() == (file.sha256 or file.blob)
