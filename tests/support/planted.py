"""Models that misbehave on demand, or show under what settings they ran."""

from __future__ import annotations

import time
from collections.abc import Sequence

import torch
from rearview.contract.chain import OperatorKind
from rearview.contract.frame import PICTURE
from rearview.contract.settings import Settings
from rearview.engine.memory.protocol import Views
from rearview.engine.networks.model import Forward, NullModel
from rearview.engine.rows import Row
from torch import Tensor

from support.frames import content

__all__ = ["FailsOn", "RefusesPrompt", "Slow", "SlowPrepare", "Stamps"]


class FailsOn(NullModel):
    """Every forward with a frame that begins with `mark` raises."""

    def __init__(self, mark: bytes) -> None:
        self._mark = mark
        self.failures: list[list[int]] = []
        """Ordinals of the rows of each forward that failed."""

    def forward(self, rows: Sequence[Row], views: Views) -> Forward:
        if any(content(row).numpy().tobytes().startswith(self._mark) for row in rows):
            self.failures.append([row.ordinal for row in rows])
            raise RuntimeError("planted")
        return super().forward(rows, views)


class Slow(NullModel):
    """A forward takes a while."""

    def __init__(self, seconds: float) -> None:
        self.seconds = seconds

    def forward(self, rows: Sequence[Row], views: Views) -> Forward:
        time.sleep(self.seconds)
        return super().forward(rows, views)


class SlowPrepare(NullModel):
    """Encoding a prompt takes a while."""

    def __init__(self, seconds: float) -> None:
        self._seconds = seconds

    def prepare(self, settings: Settings) -> None:
        time.sleep(self._seconds)


class RefusesPrompt(NullModel):
    """Fails on one prompt, ahead and in a forward."""

    def __init__(self, prompt: str) -> None:
        self._prompt = prompt

    def prepare(self, settings: Settings) -> None:
        if settings.prompt == self._prompt:
            raise ValueError("planted")

    def forward(self, rows: Sequence[Row], views: Views) -> Forward:
        for row in rows:
            self.prepare(row.settings)
        return super().forward(rows, views)


class Stamps(NullModel):
    """A picture is the frame's bytes, a `d` per denoising step, and the prompt that it ran under."""

    def forward(self, rows: Sequence[Row], views: Views) -> Forward:
        return Forward([{PICTURE: self._run(row)} for row in rows])

    def _run(self, row: Row) -> Tensor:
        if row.operator.kind is OperatorKind.ENCODE:
            return content(row)
        text = b"d" if row.operator.kind is OperatorKind.DENOISE else b"|" + row.settings.prompt.encode()
        return torch.cat(
            [content(row).flatten().byte(), torch.frombuffer(bytearray(text), dtype=torch.uint8)]
        )
