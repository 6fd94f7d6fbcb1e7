"""A model without networks whose answers say what it knows: for tests of everything but the networks.

Opaque bytes go in and come out with a watermark behind them (`contract/watermark.py`). Every denoising step
takes each input into the session's hash chain, so that the past of a session is as visible as its present.
It is deterministic and exact: a session that moved, or was rebuilt, must give the same bytes.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from rearview.contract.card import CHAIN_CHECKPOINT
from rearview.contract.chain import Operator, OperatorKind
from rearview.contract.frame import PICTURE
from rearview.contract.session import SessionSpec
from rearview.contract.settings import Settings
from rearview.contract.watermark import Link, Watermark, next_chain, settings_digest
from rearview.engine.memory.build import Layouts
from rearview.engine.memory.chain.view import CHAIN, ChainUpdate
from rearview.engine.memory.protocol import Updates, Views
from rearview.engine.networks.model import Forward
from rearview.engine.rows import Row
from rearview.errors import ConfigError

__all__ = ["ChainModel", "ForwardTime"]


@dataclass(frozen=True, slots=True)
class ForwardTime:
    """How long a forward of denoising rows takes, seconds."""

    base_s: float = 0.0
    row_s: float = 0.0

    @classmethod
    def parse(cls, checkpoint: str) -> ForwardTime:
        """That of `chain`, or of `chain:BASE+ROW` in milliseconds. Raises ConfigError."""
        name, separator, text = checkpoint.partition(":")
        assert name == CHAIN_CHECKPOINT, f"{checkpoint} is not the chain model"
        base, _, row = text.partition("+")
        try:
            found = cls(float(base) / 1e3, float(row or 0.0) / 1e3) if separator else cls()
        except ValueError:
            raise ConfigError(f"model.checkpoint {checkpoint!r}: wanted chain:BASE+ROW, ms") from None
        if not (0.0 <= found.base_s < 10.0 and 0.0 <= found.row_s < 10.0):
            raise ConfigError(f"model.checkpoint {checkpoint!r}: a forward takes 0 to 10000 ms")
        return found

    def seconds(self, rows: int) -> float:
        """Of one forward."""
        return self.base_s + rows * self.row_s


class ChainModel:
    """Watermarks what it moves. Encode and decode change nothing."""

    def __init__(self, time: ForwardTime | None = None, sleep: Callable[[float], None] = time.sleep) -> None:
        self._time, self._sleep = time or ForwardTime(), sleep

    @property
    def layouts(self) -> Layouts:
        """Denoising steps keep chains."""
        return Layouts(chain=True)

    def group(self, spec: SessionSpec, settings: Settings, operator: Operator) -> Hashable:
        return operator.kind

    def prepare(self, settings: Settings) -> None:
        pass  # There is no prompt to encode.

    def forward(self, rows: Sequence[Row], views: Views) -> Forward:
        planes = [sample.planes for row in rows for sample in row.samples()]
        past = views.of(CHAIN)
        if rows[0].operator.kind is not OperatorKind.DENOISE or past is None:
            return Forward(planes)
        if seconds := self._time.seconds(len(rows)):
            self._sleep(seconds)
        outputs, chains = [], []
        for row, chain, count in zip(rows, past.chain_B16, past.count_B.tolist(), strict=True):
            output, after = _advanced(row, bytes(chain.tolist()), count)
            outputs.append({PICTURE: output} if PICTURE in row.planes else row.planes)
            chains.append(torch.tensor(list(after), dtype=torch.uint8))
        return Forward(outputs, Updates({CHAIN.name: ChainUpdate(torch.stack(chains))}))


def _advanced(row: Row, chain: bytes, count: int) -> tuple[Tensor, bytes]:
    """What the row makes of its frame, and the session's chain after it."""
    # What is timed at start-up are latents: they have no bytes to mark.
    picture = row.planes.get(PICTURE, torch.empty(0, dtype=torch.uint8)).flatten().numpy().tobytes()
    # What a client sends is content, even if it is an answer that it once got.
    content, before = (picture, None) if row.operator.step == 0 else Watermark.read(picture)
    settings = settings_digest(row.settings)
    after = next_chain(chain, row.ordinal, settings, content)
    links = () if before is None else before.links
    mark = Watermark(
        row.session_id, row.ordinal, settings, (*links, Link(row.operator.step, count + 1, after))
    )
    return torch.frombuffer(bytearray(mark.behind(content)), dtype=torch.uint8), after
