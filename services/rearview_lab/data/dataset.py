"""The training set: generated scenes with every styled version, in one uint8 file, read into memory once.

The file is ``(scene, style, size, size, 3)`` in the order of ``STYLES``; index 0 is the natural scene. It
is written to a temporary name and renamed when complete, so a file that exists is whole.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from multiprocessing import get_context
from pathlib import Path

import cv2
import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from rearview_lab.data.scenes import SCENE_SIZE, make_scene
from rearview_lab.data.styles import FILTERS, STYLES


def make_record(index: int, *, seed: int) -> NDArray[np.uint8]:
    """One scene and its styled versions, ``(len(STYLES), size, size, 3)``."""
    scene = make_scene(seed, index)
    return np.stack([FILTERS[style](scene) for style in STYLES])


def write_dataset(path: Path, *, num_scenes: int, seed: int, num_workers: int = 2) -> None:
    """Generate the data set unless it is already there: complete, and from today's scenes and teachers."""
    shape = (num_scenes, len(STYLES), SCENE_SIZE, SCENE_SIZE, 3)
    if path.exists() and path.stat().st_size == int(np.prod(shape)) and _is_todays(path, seed):
        return
    path.parent.mkdir(parents=True, exist_ok=True)
    partial_path = path.with_suffix(".part")
    rows = np.memmap(partial_path, dtype=np.uint8, mode="w+", shape=shape)
    for index, record in enumerate(_records(num_scenes, seed, num_workers)):
        rows[index] = record
        if index % 250 == 0:
            print(f"data: scene {index} of {num_scenes}", flush=True)
    rows.flush()
    os.replace(partial_path, path)


def _is_todays(path: Path, seed: int) -> bool:
    """Whether the first record is what would be made now; teachers change, and files outlive them."""
    record = make_record(0, seed=seed)
    return np.array_equal(np.fromfile(path, dtype=np.uint8, count=record.size), record.ravel())


def _records(num_scenes: int, seed: int, num_workers: int) -> Iterator[NDArray[np.uint8]]:
    """Records in order, from this process or from fresh ones; a forked one would inherit torch's locks."""
    record = partial(make_record, seed=seed)
    if num_workers <= 1:
        yield from map(record, range(num_scenes))
        return
    with get_context("spawn").Pool(num_workers, initializer=cv2.setNumThreads, initargs=(1,)) as pool:
        yield from pool.imap(record, range(num_scenes), chunksize=16)


@dataclass(frozen=True)
class Dataset:
    """Scenes in memory; batches come out as ``(row, 3, height, width)`` in -1..1."""

    rows: NDArray[np.uint8]  # (scene, style, size, size, 3)

    @classmethod
    def load(cls, path: Path) -> Dataset:
        flat = np.fromfile(path, dtype=np.uint8)
        return cls(flat.reshape(-1, len(STYLES), SCENE_SIZE, SCENE_SIZE, 3))

    def __len__(self) -> int:
        return int(self.rows.shape[0])

    def pictures(self, scenes: NDArray[np.int64], styles: NDArray[np.int64], device: torch.device) -> Tensor:
        """Gather one picture per (scene, style) pair."""
        picture_BHWC = torch.from_numpy(self.rows[scenes, styles]).to(device)
        return picture_BHWC.permute(0, 3, 1, 2).float() / 127.5 - 1
