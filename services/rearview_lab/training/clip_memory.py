"""The feature bank as training sees it: all frames of a clip in one forward, each with its own past.

A frame's keys and values depend on earlier frames alone, so one forward over whole clips, in which each
layer shows a frame the keys and values of the frames just before it, equals running the frames in order
with a queue that is written after every frame. Gradients flow into the past as well.
"""

from __future__ import annotations

import torch
from torch import Tensor

MAX_FRAMES = 3  # of the queue


class ClipMemory:
    """An `AttentionMemory` for rows that are whole clips, ``(clip * frame)``."""

    def __init__(self, has_bank: Tensor, length: int, *, max_frames: int = MAX_FRAMES) -> None:
        """`has_bank`: ``(clip,)``; frames of the other clips see themselves alone."""
        self._length, self._max_frames = length, max_frames
        frames = torch.arange(length, device=has_bank.device)
        ages = torch.arange(1, max_frames + 1, device=has_bank.device)
        exists = frames[:, None] >= ages[None, :]
        self._sees = (has_bank[:, None, None] & exists[None]).flatten(0, 1)  # (row, age)

    def extend(self, layer: int, key_BNC: Tensor, value_BNC: Tensor) -> tuple[Tensor, Tensor, Tensor | None]:
        """Keys and values of the frames before."""
        mask_BM = self._sees.repeat_interleave(key_BNC.shape[1], dim=1)
        return self._past(key_BNC), self._past(value_BNC), mask_BM

    def fuse(self, layer: int, output_BNC: Tensor) -> Tensor:
        """Unchanged: the bank that is trained for does not fuse."""
        return output_BNC

    def record(self, layer: int, key_BNC: Tensor, value_BNC: Tensor, output_BNC: Tensor) -> None:
        """Nothing: the past of a row is in its batch."""

    def _past(self, tokens_BNC: Tensor) -> Tensor:
        clips = tokens_BNC.unflatten(0, (-1, self._length))
        ages = range(1, self._max_frames + 1)
        return torch.cat([self._shifted(clips, age) for age in ages], dim=2).flatten(0, 1)

    def _shifted(self, clips: Tensor, age: int) -> Tensor:
        age = min(age, self._length)
        return torch.cat([torch.zeros_like(clips[:, :age]), clips[:, : self._length - age]], dim=1)
