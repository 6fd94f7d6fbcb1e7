"""A model from the hub to a folder in diffusers format: resumed, checked, all of it or nothing.

Files come into a hidden folder beside the target, which gets its name when all are there and checked. What
was loaded before a connection broke, a cancel or a crash stays there, and the next call goes on with it. We
stream the bytes ourselves, since the hub's client keeps none of a download that did not end.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import json
import shutil
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from rearview.environment import cache_folder, environment
from rearview.models.catalogue import KnownModel, model_named
from rearview.models.failure import FetchFailed, FetchReason
from rearview.models.listing import Listing, RemoteFile, list_files, matches

__all__ = ["MANIFEST", "Progress", "fetch", "fetched", "model_folder", "models_folder"]

MANIFEST = "rearview-source.json"
"""In the folder of a fetched model: where its files are from, and what they are."""
CHUNK_BYTES = 1 << 20
TIMEOUT_S = 10.0
"""Of silence on a connection."""
ATTEMPTS = 5
"""In a row that bring no byte."""
PAUSE_S = 1.0
"""Before the second attempt; then twice as long each time."""
SPARE_BYTES = 64 << 20
"""That must stay free."""


@dataclass(frozen=True, slots=True)
class Progress:
    """How far a fetch is."""

    bytes_done: int
    bytes_total: int
    file: str
    """Its path in the model's folder."""


def models_folder() -> Path:
    """Where fetched models lie: REARVIEW_MODELS, else in the cache (~/.cache/rearview); without a home in
    .rearview of the working directory.
    """
    named = environment("MODELS")
    return Path(named) if named else (cache_folder() or Path(".rearview")) / "models"


def model_folder(name: str) -> Path:
    """Where a known model, or one named by its hub id, lies once it is fetched. Raises FetchFailed."""
    return models_folder() / model_named(name).id


def fetched(folder: Path) -> bool:
    """Whether a model is there, with every file of the size that it had when it was fetched."""
    try:
        files = json.loads((folder / MANIFEST).read_text(encoding="utf-8"))["files"]
        return all((folder / name).stat().st_size == said["bytes"] for name, said in files.items())
    except (OSError, ValueError, LookupError, TypeError):
        return False


def fetch(
    model: KnownModel,
    folder: Path,
    on_progress: Callable[[Progress], None] | None = None,
    cancel: threading.Event | None = None,
    *,
    listing: Listing | None = None,
    endpoint: str | None = None,
) -> Path:
    """Fetch `model` into `folder`, or find it there. Blocks for minutes; returns `folder`.

    `on_progress` is called in this thread, at least once a mebibyte; what it raises ends the fetch. `cancel`
    ends it within seconds.
    `listing`: what `list_files` said, if it was asked already. Raises FetchFailed; `folder` is complete or
    as it was before.
    """
    if fetched(folder):
        return folder
    if folder.is_dir() and not (folder / MANIFEST).is_file() and any(folder.iterdir()):
        raise FetchFailed(FetchReason.NOT_WRITABLE, f"{folder} holds something else")
    with _alone(folder):
        if fetched(folder):  # By another process, meanwhile.
            return folder
        staging = folder.with_name(f".{folder.name}.part")
        staging.mkdir(exist_ok=True)
        found = listing if listing is not None else list_files(model, endpoint)
        work = _Fetch(staging, found, on_progress or _ignore, cancel or threading.Event(), endpoint)
        work.run()
        _finish(staging, folder, found)
    return folder


def _ignore(progress: Progress) -> None:
    pass


@contextlib.contextmanager
def _alone(folder: Path) -> Iterator[None]:
    """Only one process at a time fetches into `folder`. Raises FetchFailed for the disk's errors."""
    lock = folder.with_name(f".{folder.name}.lock")
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        with lock.open("w") as opened:
            try:
                fcntl.flock(opened, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                raise FetchFailed(FetchReason.BUSY, f"{folder} is being fetched") from None
            yield
    except OSError as error:
        raise _of_disk(error, folder) from None


def _of_disk(error: OSError, folder: Path) -> FetchFailed:
    if error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
        return FetchFailed(FetchReason.NO_SPACE, f"there is no room left for {folder}")
    return FetchFailed(FetchReason.NOT_WRITABLE, f"{folder} cannot be written ({error.strerror or error})")


def _finish(staging: Path, folder: Path, listing: Listing) -> None:
    manifest = {
        "model": listing.model.id,
        "commits": dict(listing.commits),
        "licences": dict(listing.licences),
        "files": {one.target: {"bytes": one.num_bytes, "sha256": one.sha256} for one in listing.files},
    }
    wanted = {one.target for one in listing.files}
    for path in staging.rglob("*"):  # Of another revision, or of a file that is no longer there.
        if path.is_file() and path.relative_to(staging).as_posix() not in wanted:
            path.unlink()
    (staging / MANIFEST).write_text(json.dumps(manifest, indent=2) + "\n", encoding="utf-8")
    if folder.exists():
        former = folder.with_name(f".{folder.name}.old")
        shutil.rmtree(former, ignore_errors=True)
        folder.rename(former)
        staging.rename(folder)
        shutil.rmtree(former, ignore_errors=True)
        return
    staging.rename(folder)


@dataclass
class _Fetch:
    """One run over all files."""

    staging: Path
    listing: Listing
    on_progress: Callable[[Progress], None]
    cancel: threading.Event
    endpoint: str | None
    done: int = field(default=0)
    """Bytes of this model that are here."""

    def run(self) -> None:
        missing = []
        for file in self.listing.files:
            if self._is_here(file):
                self._count(file.num_bytes, file)
            else:
                missing.append(file)
        self._check_space(missing)
        for file in missing:
            self._get(file)

    def _count(self, num_bytes: int, file: RemoteFile) -> None:
        self.done += num_bytes
        self.on_progress(Progress(self.done, self.listing.num_bytes, file.target))

    def _is_here(self, file: RemoteFile) -> bool:
        path = self.staging / file.target
        return path.is_file() and matches(path, file)

    def _check_space(self, missing: list[RemoteFile]) -> None:
        needed = sum(one.num_bytes - _size(self._partial(one)) for one in missing) + SPARE_BYTES
        free = shutil.disk_usage(self.staging).free
        if missing and free < needed:
            text = f"{needed / 1e6:.0f} MB are needed and {free / 1e6:.0f} MB free in {self.staging.parent}"
            raise FetchFailed(FetchReason.NO_SPACE, text)

    def _partial(self, file: RemoteFile) -> Path:
        """Named by what it becomes, so that bytes of two revisions never meet."""
        digest = (file.sha256 or file.blob or file.commit)[:16]
        return self.staging / f"{file.target}.{digest}.partial"

    def _get(self, file: RemoteFile) -> None:
        partial, path = self._partial(file), self.staging / file.target
        path.parent.mkdir(parents=True, exist_ok=True)
        if file.cached is not None and matches(file.cached, file):
            shutil.copyfile(file.cached, partial)
            self._count(file.num_bytes, file)
        else:
            self._download(file, partial)
        partial.replace(path)

    def _download(self, file: RemoteFile, partial: Path) -> None:
        if _size(partial) > file.num_bytes:
            partial.unlink()
        self._count(_size(partial), file)
        self._stream_all(file, partial)
        if not matches(partial, file):
            partial.unlink()
            raise FetchFailed(FetchReason.CHECKSUM, f"{file.hub_id}/{file.name} is not what the hub says")

    def _stream_all(self, file: RemoteFile, partial: Path) -> None:
        """Until all bytes are there, over as many connections as it takes."""
        attempts, pause_s = 0, PAUSE_S
        while not partial.exists() or _size(partial) < file.num_bytes:
            self._check_cancel()
            before = _size(partial)
            reason = self._stream(file, partial)
            if _size(partial) > before:
                attempts, pause_s = 0, PAUSE_S
                continue
            attempts += 1
            if attempts >= ATTEMPTS:
                got = f"{_size(partial)} of {file.num_bytes} bytes of {file.hub_id}/{file.name}"
                raise FetchFailed(FetchReason.INTERRUPTED, f"the connection broke after {got} ({reason})")
            if file.num_bytes:
                self.cancel.wait(pause_s)
            pause_s *= 2

    def _stream(self, file: RemoteFile, partial: Path) -> str:
        """One connection's worth of bytes. Returns why it ended. Raises FetchFailed if no other can help."""
        from huggingface_hub import get_session, get_token, hf_hub_url

        url = hf_hub_url(file.hub_id, file.name, revision=file.commit, endpoint=self.endpoint)
        start = _size(partial)
        headers = {"Accept-Encoding": "identity"}
        if token := get_token():
            headers["Authorization"] = f"Bearer {token}"
        if start:
            headers["Range"] = f"bytes={start}-"
        with contextlib.ExitStack() as stack:
            opening = get_session().stream(
                "GET", url, headers=headers, follow_redirects=True, timeout=TIMEOUT_S
            )
            try:
                answer = stack.enter_context(opening)
            except Exception as error:  # Whatever the hub's client raises (its errors change).
                return type(error).__name__
            _check_status(answer.status_code, file)
            if answer.status_code >= 400:
                return f"status {answer.status_code}"
            goes_on = answer.status_code == 206
            self._count(0 if goes_on else -start, file)
            opened = stack.enter_context(partial.open("ab" if goes_on else "wb"))
            try:
                for chunk in _chunks(answer):
                    self._check_cancel()
                    opened.write(chunk)
                    self._count(len(chunk), file)
            except _Broken as broken:
                return str(broken)
        return "it ended early"

    def _check_cancel(self) -> None:
        if self.cancel.is_set():
            raise FetchFailed(FetchReason.CANCELLED, f"{self.listing.model.title} was not fetched")


class _Broken(Exception):
    """A connection broke. Other errors on the way (the disk's, the caller's) are not its own."""


def _chunks(answer: Any) -> Iterator[bytes]:
    try:
        yield from answer.iter_bytes(CHUNK_BYTES)
    except Exception as error:  # As above.
        raise _Broken(type(error).__name__) from None


def _check_status(status: int, file: RemoteFile) -> None:
    """Raises FetchFailed for an answer that will not change."""
    name = f"{file.hub_id}/{file.name}"
    if status in (401, 403):
        raise FetchFailed(FetchReason.GATED, f"the hub does not give {name} to you")
    if status in (404, 410):
        raise FetchFailed(FetchReason.NOT_FOUND, f"the hub has no {name}")
    if status == 416:
        raise FetchFailed(FetchReason.CHECKSUM, f"{name} is shorter than the hub says")


def _size(path: Path) -> int:
    try:
        return path.stat().st_size
    except FileNotFoundError:
        return 0
