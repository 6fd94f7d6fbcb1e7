"""What the engine needs of a model: its operators as batched functions without state.

`DiffusionModel` runs the networks; `NullModel` moves opaque bytes, to measure everything but the
networks. A model holds weights only. What a session remembers is an argument and a return value.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from rearview.engine.chain import Operator, OperatorKind
from rearview.engine.memory.feature_bank import bank_group
from rearview.engine.memory.layers import BankLayout
from rearview.engine.memory.protocol import MemoryUpdate, MemoryView
from rearview.engine.operators.decode import decode
from rearview.engine.operators.denoise import Denoiser
from rearview.engine.operators.encode import encode
from rearview.engine.rows import Row
from rearview.engine.session import SessionSpec, Settings

__all__ = ["DiffusionModel", "Forward", "Model", "NullModel"]


@dataclass(frozen=True, slots=True)
class Forward:
    """What one batched forward returns."""

    outputs: Sequence[Tensor]
    """One payload per row, in order."""
    update: MemoryUpdate = None
    """What the rows would write to memory when they commit."""


class Model(Protocol):
    """Weights and the functions over them."""

    def group(self, spec: SessionSpec, settings: Settings, operator: Operator) -> Hashable:
        """Rows with equal groups may share a forward."""

    def prepare(self, settings: Settings) -> None:
        """Do ahead what new settings need (encode the prompt), so that no frame waits for it."""

    def forward(self, rows: Sequence[Row], view: MemoryView) -> Forward:
        """Run rows of one group. Reads `view`, changes nothing."""


class DiffusionModel:
    """An image diffusion checkpoint: VAE and UNet, or those of them that the span needs."""

    def __init__(
        self,
        vae: torch.nn.Module | None,
        denoiser: Denoiser | None,
        *,
        device: torch.device,
        dtype: torch.dtype,
    ) -> None:
        self._vae, self._denoiser = vae, denoiser
        self._device, self._dtype = device, dtype

    @property
    def bank_layout(self) -> BankLayout | None:
        """What a feature bank over this model remembers; None if the span has no UNet that takes one."""
        return None if self._denoiser is None else self._denoiser.bank_layout

    def group(self, spec: SessionSpec, settings: Settings, operator: Operator) -> Hashable:
        memory = bank_group(spec.bank) if operator.kind is OperatorKind.DENOISE else None
        return operator.kind, spec.height, spec.width, memory

    def prepare(self, settings: Settings) -> None:
        if self._denoiser is not None:
            self._denoiser.conditioning.embed(settings.prompt)

    @torch.inference_mode()
    def forward(self, rows: Sequence[Row], view: MemoryView) -> Forward:
        kind = rows[0].operator.kind
        batch = torch.stack([row.payload for row in rows]).to(self._device)
        update = None
        if kind is OperatorKind.DENOISE:
            assert self._denoiser is not None, "this span owns no UNet"
            output, update = self._denoiser(batch, rows, view)
        else:
            assert self._vae is not None, "this span owns no VAE"
            operator: Callable[..., Tensor] = encode if kind is OperatorKind.ENCODE else decode
            output = operator(self._vae, batch, self._dtype)
        return Forward(list(output.cpu().unbind(0)), update)


class NullModel:
    """Moves its payload unchanged through every operator."""

    def group(self, spec: SessionSpec, settings: Settings, operator: Operator) -> Hashable:
        return operator.kind

    def prepare(self, settings: Settings) -> None:
        pass  # There is no prompt to encode.

    def forward(self, rows: Sequence[Row], view: MemoryView) -> Forward:
        return Forward([row.payload for row in rows])
