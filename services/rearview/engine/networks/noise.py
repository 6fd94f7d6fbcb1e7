"""The noise of a forward's samples, on its device.

Noise that is the same for every frame of a session is drawn once and kept there: for each seed, step and
shape, the one that was not used longest goes first. Fresh noise is drawn one ordinal ahead (`ahead.py`).
Shape legend: B samples, C channels, h x w latent size.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from rearview.contract.settings import NoiseRule
from rearview.engine.ahead import Ahead
from rearview.engine.devices import upload
from rearview.engine.networks.sampling import NoiseKey
from rearview.engine.rows import Row

__all__ = ["NoiseStore"]

MAX_BYTES = 64 << 20
"""Of fixed noise. A step of Stable Diffusion 1.5 at 512 x 512 takes 64 KiB for each seed."""


class NoiseStore:
    """The noise of all sessions of a span. Not thread-safe: the engine is the only caller."""

    def __init__(self, ahead: Ahead | None = None, max_bytes: int = MAX_BYTES) -> None:
        """`ahead`: draws fresh noise before it is needed. `max_bytes`: of fixed noise that is kept."""
        self._ahead, self._max_bytes = ahead or Ahead(), max_bytes
        self._fixed: OrderedDict[_Place, Tensor] = OrderedDict()
        self._fixed_bytes = 0
        self._zeros: dict[_Kind, Tensor] = {}

    def rows(self, rows: Sequence[Row], steps: Sequence[int | None], like_BCHW: Tensor) -> Tensor:
        """What is drawn for each row's own step, (B, C, h, w), as `sampling.noise` draws it; zeros where the
        step is None.
        """
        kind = _Kind(tuple(like_BCHW.shape[1:]), like_BCHW.dtype, like_BCHW.device)
        found = [
            self._none(kind) if step is None else self._drawn(row, step, kind)
            for row, step in zip(rows, steps, strict=True)
        ]
        if self._ahead.is_on:
            self._expect(rows, steps, kind.shape)
        return torch.stack(found)

    def _drawn(self, row: Row, step: int, kind: _Kind) -> Tensor:
        settings = row.settings
        if settings.noise_rule is not NoiseRule.FRESH:
            place = settings.seed, step, kind
            noise = self._fixed.get(place)
            if noise is None:
                return self._keep(place, NoiseKey.of(settings, row.ordinal, step, kind.shape))
            self._fixed.move_to_end(place)
            return noise
        key = NoiseKey.of(settings, row.ordinal, step, kind.shape)
        return kind.of(self._ahead.take(row.session_id, ("noise", step), key))

    def _keep(self, place: _Place, key: NoiseKey) -> Tensor:
        noise = self._fixed[place] = place[2].of(key.draw(pinned=self._ahead.pinned))
        self._fixed_bytes += noise.nbytes
        while self._fixed_bytes > self._max_bytes and len(self._fixed) > 1:
            _, oldest = self._fixed.popitem(last=False)
            self._fixed_bytes -= oldest.nbytes
        return noise

    def _none(self, kind: _Kind) -> Tensor:
        zeros = self._zeros.get(kind)
        if zeros is None:
            zeros = self._zeros[kind] = torch.zeros(kind.shape, dtype=kind.dtype, device=kind.device)
        return zeros

    def _expect(self, rows: Sequence[Row], steps: Sequence[int | None], shape: tuple[int, ...]) -> None:
        """Have the noise of the next frames drawn: of a window's, of the one that comes after all of them."""
        following = {
            (row.session_id, step): NoiseKey.of(row.settings, row.ordinal + 1, step, shape)
            for row, step in zip(rows, steps, strict=True)
            if step is not None and row.settings.noise_rule is NoiseRule.FRESH
        }
        for (session_id, step), key in following.items():
            self._ahead.expect(session_id, ("noise", step), key)


class _Kind(NamedTuple):
    """What noise is besides its numbers."""

    shape: tuple[int, ...]
    dtype: torch.dtype
    device: torch.device

    def of(self, noise: Tensor) -> Tensor:
        """Noise of the host as such."""
        return upload(noise, self.device).to(self.dtype)


_Place = tuple[int, int, _Kind]
"""Seed and step of fixed noise, and its kind."""
