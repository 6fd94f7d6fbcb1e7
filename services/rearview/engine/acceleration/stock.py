"""Compiled calls on disk: a folder with a file for each, and a list of what they are for.

What surprises: a call that was compiled and found no faster, or not as exact as it must be, is listed
without a file, so that nobody tries again. Nothing here is needed: what is missing, broken or of another
version runs eager, with a word in the log.
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
import shutil
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from torch import Tensor, nn

from rearview.engine.acceleration.packages import Compiled, Dims, Forms, load

__all__ = ["Artefact", "Stock", "worded"]

logger = logging.getLogger(__name__)

FORMAT = 2
LIST = "list.json"


@dataclass(frozen=True, slots=True)
class Artefact:
    """A compiled call: for what it is, and what was found when it was made."""

    part: str
    """What of the model was compiled: `unet`, `unet:ADAPTERS`, `encode`, `decode`."""
    sort: str
    """Of the call, but for the number of samples, in words."""
    is_batch: bool
    """Whether it is for any number of samples from two; else it is for one."""
    file: str
    """Name in the folder; empty: it was not worth keeping."""
    dims: Dims
    """Dimensions that may be of any size."""
    error: float
    """Relative RMS against one type wider; of the output where it is largest beside `eager_error`."""
    eager_error: float
    """The same of the network run module by module."""
    seconds: float
    """Of the fastest call."""
    eager_seconds: float
    """The same of the network as it is, in turns with it."""

    @property
    def key(self) -> tuple[str, str, bool]:
        """What it is looked for by."""
        return self.part, self.sort, self.is_batch


def worded(sort: object, tensors: Sequence[Tensor]) -> str:
    """A sort of call in words, with the type of each tensor and how it lies in memory: compiled code believes
    all that.
    """
    return f"{sort!r} {' '.join(map(_layout, tensors))}"


def _layout(tensor: Tensor) -> str:
    dtype = str(tensor.dtype).removeprefix("torch.")
    if tensor.dim() == 4 and tensor.is_contiguous(memory_format=torch.channels_last):
        return f"{dtype}/channels_last"
    return dtype if tensor.is_contiguous() else f"{dtype}/{tensor.stride()}"


class Stock:
    """The artefacts in one folder, all of one model, machine and version of the code."""

    def __init__(self, folder: Path) -> None:
        """It is made with the first artefact that is added."""
        self._folder = folder
        self._known = {artefact.key: artefact for artefact in self._read()}
        self._loaded = Forms[Compiled | None]()

    @property
    def artefacts(self) -> Sequence[Artefact]:
        """All that is known, those without a file included."""
        return tuple(self._known.values())

    @property
    def digest(self) -> str:
        """Of what there is to run; empty if there is nothing."""
        files = sorted(artefact.file for artefact in self._known.values() if artefact.file)
        return hashlib.sha256("\n".join(files).encode()).hexdigest()[:16] if files else ""

    def knows(self, key: tuple[str, str, bool]) -> bool:
        """Whether that was made, or tried. `key`: see `Artefact.key`."""
        return key in self._known

    def find(self, part: str, sort: str, samples: int, network: nn.Module) -> Compiled | None:
        """What runs such a call of `network`; None: nothing does."""
        artefact = self._known.get((part, sort, samples > 1))
        if artefact is None or not artefact.file:
            return None
        # Not by the file: without weights two of them may be the same.
        return self._loaded.find(part, sort, samples, lambda: self._load(artefact, network))

    def add(self, artefact: Artefact, package: Path | None) -> Artefact:
        """Put it into the folder, under a name of its content. `package`: what was compiled, which is moved;
        None: it is known as tried.
        """
        self._folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        name = ""
        if package is not None:
            name = f"{hashlib.sha256(package.read_bytes()).hexdigest()[:32]}{package.suffix}"
            shutil.move(package, self._folder / name)
        kept = Artefact(**{**asdict(artefact), "file": name})
        self._known[kept.key] = kept
        content = {"format": FORMAT, "artefacts": [asdict(each) for each in self._known.values()]}
        beside = self._folder / f".{LIST}.{os.getpid()}"
        beside.write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")
        beside.replace(self._folder / LIST)
        return kept

    def _read(self) -> list[Artefact]:
        try:
            content = json.loads((self._folder / LIST).read_text(encoding="utf-8"))
            if content["format"] != FORMAT:
                return []
            found = [Artefact(**each) for each in content["artefacts"]]
            return [each for each in found if not each.file or (self._folder / each.file).is_file()]
        except FileNotFoundError:
            return []
        except (OSError, ValueError, LookupError, TypeError, AttributeError) as error:
            logger.warning("compiled networks cannot be read, none is used: %s", type(error).__name__)
            return []

    def _load(self, artefact: Artefact, network: nn.Module) -> Compiled | None:
        try:
            return load(self._folder / artefact.file, network, artefact.dims)
        except Exception as error:  # Of a library of compiled code anything may be wrong.
            logger.warning("a compiled %s cannot be loaded, it runs eager: %s", artefact.part, error)
            return None
