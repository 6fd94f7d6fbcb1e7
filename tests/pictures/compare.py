"""Two sets of pictures of one scenario, compared bit for bit. Knows numpy and files, not the service."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

__all__ = ["Pictures", "Verdict", "compare", "digest", "read_pictures", "table", "write_pictures"]

Pictures = Mapping[int, NDArray[np.uint8]]
"""By frame index, each (height, width, 3)."""
DIGEST_DIGITS = 12
MAX_LEVELS = 255
"""Also what pictures of two sizes differ by."""


@dataclass(frozen=True, slots=True)
class Verdict:
    """What became of one scenario."""

    scenario: str
    frames: int
    """Sent by either side."""
    missing: Sequence[int]
    """Frames without a picture, on whichever side."""
    different: Sequence[int]
    """Frames with two pictures that are not the same."""
    max_levels: int
    """Largest difference of a value in any of them, levels of 255."""
    digests: tuple[str, str]

    @property
    def is_equal(self) -> bool:
        """Whether every frame has its picture on both sides, and the same one."""
        return not self.missing and not self.different

    @property
    def outcome(self) -> str:
        """In a few words."""
        parts = []
        if self.missing:
            parts.append(f"{len(self.missing)} missing, first {self.missing[0]}")
        if self.different:
            parts.append(f"{len(self.different)} differ, first {self.different[0]}")
        return "; ".join(parts) or "equal"


def write_pictures(folder: Path, scenario: str, pictures: Pictures) -> None:
    """One file a scenario."""
    np.savez(folder / f"{scenario}.npz", **{str(index): picture for index, picture in pictures.items()})


def read_pictures(folder: Path, scenario: str) -> Pictures:
    """What `write_pictures` wrote; nothing if it was not called."""
    path = folder / f"{scenario}.npz"
    if not path.is_file():
        return {}
    with np.load(path) as content:
        return {int(index): content[index] for index in content.files}


def compare(scenario: str, frames: int, expected: Pictures, found: Pictures) -> Verdict:
    """`frames` were sent to each side, with indices from 0 on."""
    both = [index for index in range(frames) if index in expected and index in found]
    levels = {index: _levels(expected[index], found[index]) for index in both}
    return Verdict(
        scenario,
        frames,
        missing=[index for index in range(frames) if index not in levels],
        different=[index for index, difference in levels.items() if difference],
        max_levels=max(levels.values(), default=0),
        digests=(digest(expected), digest(found)),
    )


def digest(pictures: Pictures) -> str:
    """Of indices and values, the first digits of SHA-256."""
    state = hashlib.sha256()
    for index in sorted(pictures):
        state.update(f"{index} {pictures[index].shape} ".encode())
        state.update(np.ascontiguousarray(pictures[index]).data)
    return state.hexdigest()[:DIGEST_DIGITS]


def table(verdicts: Sequence[Verdict]) -> Iterator[str]:
    """Lines for people: a head, and one line a scenario."""
    width = max((len(verdict.scenario) for verdict in verdicts), default=0)
    yield f"{'scenario':{width}}  frames  levels  {'digest':{DIGEST_DIGITS}}  outcome"
    for each in verdicts:
        before, after = each.digests
        shown = after if before == after else f"{after}  was {before}"
        yield f"{each.scenario:{width}}  {each.frames:6}  {each.max_levels:6}  {shown}  {each.outcome}"


def _levels(expected: NDArray[np.uint8], found: NDArray[np.uint8]) -> int:
    if expected.shape != found.shape:
        return MAX_LEVELS
    return int(np.abs(expected.astype(np.int16) - found.astype(np.int16)).max(initial=0))
