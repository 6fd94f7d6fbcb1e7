"""Where pictures go, by name: a video, one image, a folder of images, or an address.

All that can be known beforehand is checked when a target is made, and nothing is written then. A file comes
to be under another name and gets its own when it is whole, so that what was there before is whole or new, and
never half of each. What a translation that broke off has written keeps that other name.
"""

from __future__ import annotations

import os
import re
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Protocol

from rearview.client.containers import CONTAINERS, STREAMED, Container
from rearview.client.media import IMAGE_SUFFIXES, ImagesSource, images_in
from rearview.client.media_writer import Film, FolderWriter, ImageWriter, VideoWriter, Writer
from rearview.client.pictures import MediaError, Source, scheme_of, without_secrets

__all__ = ["Target", "check_not_read", "check_writable", "open_target", "whole_file"]

WRITTEN_IMAGES = (".png", ".jpg", ".jpeg")
_FRAME = re.compile(r"frame-\d{6}\.png")
"""How `FolderWriter` names images."""


class Target(Protocol):
    """A place for pictures, checked."""

    name: str

    def open(self, film: Film) -> Writer:
        """Begin to write. Raises MediaError."""
        ...

    def settle(self, *, is_whole: bool) -> str:
        """After the writer was closed: where the pictures are now, for the user; empty if there are none.

        Whole: they get the name of the target. Raises OSError.
        """
        ...


def open_target(name: str, source: Source, *, overwrite: bool = False) -> Target:
    """The target for pictures of `source`. `overwrite`: take a folder that has images in it.

    Raises MediaError for what could not be written, and for what would overwrite the source.
    """
    if not name or name == "-":
        raise MediaError(f"{name or '(empty)'}: is no output: take a file, a folder, or an address")
    if (scheme := scheme_of(name)) is not None:
        return _at_address(name, scheme)
    path, suffix = Path(os.path.realpath(name)), Path(name).suffix.lower()
    if path.is_dir() or name.endswith(("/", os.sep)) or not suffix:
        _check_other(name, path, [item.parent for item in source.paths if isinstance(source, ImagesSource)])
        return _Folder(name, path, overwrite=overwrite)
    _check_other(name, path, source.paths)
    if suffix in IMAGE_SUFFIXES:
        _check_image(name, suffix, source)
        return _File(name, path, lambda place, film: ImageWriter(place))
    if (kind := CONTAINERS.get(suffix)) is None:
        raise MediaError(f"{name}: write to {', '.join(CONTAINERS)}, or to a folder (end its name with /)")
    return _File(name, path, lambda place, film: VideoWriter(str(place), kind, film, shown=name))


def check_writable(name: str, path: Path) -> None:
    """Raises MediaError unless a file can be made at `path`, whose folders may be missing. Leaves nothing."""
    if path.is_dir():
        raise MediaError(f"{name}: is a folder")
    folder = next(parent for parent in path.parents if parent.exists())
    try:
        with tempfile.NamedTemporaryFile(dir=folder, prefix=".rearview-"):
            pass
    except OSError as error:
        raise MediaError(f"{name}: cannot be written: {folder}: {error.strerror}") from None


def whole_file(path: Path, write: Callable[[Path], object]) -> None:
    """Let `write` make a file beside `path`, which it then replaces. Raises what `write` raises."""
    path.parent.mkdir(parents=True, exist_ok=True)
    beside = _free(path.with_name(f"{path.stem}.partial{path.suffix}"))
    try:
        write(beside)
        os.replace(beside, path)
    finally:
        beside.unlink(missing_ok=True)


class _File:
    """A video or an image."""

    def __init__(self, name: str, path: Path, make: Callable[[Path, Film], Writer]) -> None:
        check_writable(name, path)
        self.name, self._path, self._make = name, path, make
        self._beside = path

    def open(self, film: Film) -> Writer:
        """See `Target`."""
        try:
            self._path.parent.mkdir(parents=True, exist_ok=True)
            self._beside = _free(self._path.with_name(f"{self._path.stem}.partial{self._path.suffix}"))
            self._beside.touch(exist_ok=False)
        except OSError as error:
            raise MediaError(f"{self.name}: cannot be written: {error.strerror}") from None
        try:
            return self._make(self._beside, film)
        except BaseException:
            self.settle(is_whole=False)
            raise

    def settle(self, *, is_whole: bool) -> str:
        """See `Target`."""
        if is_whole:
            os.replace(self._beside, self._path)
            return self.name
        if self._beside.stat().st_size == 0:
            self._beside.unlink()
            return ""
        return str(Path(self.name).with_name(self._beside.name))


class _Folder:
    """Numbered images."""

    def __init__(self, name: str, path: Path, *, overwrite: bool) -> None:
        self.name, self._path, self._beside = name, path, path
        if path.exists() and not path.is_dir():
            raise MediaError(f"{name}: is a file, not a folder; for a video take {', '.join(CONTAINERS)}")
        check_writable(name, path / "frame")
        found = images_in(path) if path.is_dir() else []
        if found and not overwrite:
            text = f"has images already, such as {found[0].name}: take another folder, or --overwrite"
            raise MediaError(f"{name}: {text}")

    def open(self, film: Film) -> Writer:
        """See `Target`."""
        try:
            self._path.mkdir(parents=True, exist_ok=True)
            self._beside = _free(self._path / "partial")
            self._beside.mkdir()
        except OSError as error:
            raise MediaError(f"{self.name}: cannot be made: {error.strerror}") from None
        return FolderWriter(self._beside)

    def settle(self, *, is_whole: bool) -> str:
        """See `Target`. Images that `FolderWriter` has named are replaced, others are left alone."""
        written = sorted(self._beside.iterdir())
        if is_whole:
            for former in self._path.iterdir():
                if _FRAME.fullmatch(former.name):
                    former.unlink()
            for image in written:
                image.rename(self._path / image.name)
        if is_whole or not written:
            self._beside.rmdir()
            return self.name if is_whole else ""
        return str(Path(self.name) / self._beside.name)


class _Stream:
    """An address to which a video is sent as it comes to be."""

    def __init__(self, address: str, kind: Container) -> None:
        self.name, self._address, self._kind = without_secrets(address), address, kind

    def open(self, film: Film) -> Writer:
        """See `Target`."""
        return VideoWriter(self._address, self._kind, film, shown=self.name)

    def settle(self, *, is_whole: bool) -> str:
        """See `Target`. What was sent cannot be taken back."""
        return self.name if is_whole else ""


def _at_address(address: str, scheme: str) -> Target:
    shown = without_secrets(address)
    if scheme not in STREAMED or not address[len(scheme) :].startswith("://"):
        schemes = ", ".join(f"{known}://" for known in STREAMED)
        raise MediaError(f"{shown}: cannot be written: take {schemes}, a file or a folder")
    return _Stream(address, STREAMED[scheme])


def _check_image(name: str, suffix: str, source: Source) -> None:
    if suffix not in WRITTEN_IMAGES:
        raise MediaError(f"{name}: one image is written as {', '.join(WRITTEN_IMAGES)}")
    if not isinstance(source, ImagesSource) or source.num_frames != 1:
        text = f"is one image, and {source.name} is more than one"
        raise MediaError(f"{name}: {text}: write to {', '.join(CONTAINERS)}, or to a folder")


def check_not_read(name: str, inputs: Sequence[Path]) -> None:
    """Raises MediaError if writing to `name`, a file, a folder or an address, would write to one of `inputs`,
    by whatever name.
    """
    if scheme_of(name) is None:
        _check_other(name, Path(name), inputs)


def _check_other(name: str, path: Path, inputs: Sequence[Path]) -> None:
    """Raises MediaError if writing to `path` would write to one of `inputs`, by whatever name."""
    for item in inputs:
        if path.exists() and item.exists() and os.path.samefile(path, item):
            raise MediaError(f"{name}: is the input: write to another file or folder")


def _free(path: Path) -> Path:
    """`path`, or the first of its numbered neighbours that is not there."""
    number = 1
    free = path
    while os.path.lexists(free):
        number += 1
        free = path.with_name(f"{path.stem}-{number}{path.suffix}")
    return free
