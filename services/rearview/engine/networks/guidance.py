"""Guidance: pushing a prediction away from something by the factor g (none, full, and RCFG's two).

With p the noise that the UNet predicts and u the noise to get away from, e = u + g (p - u). In `full`
guidance u is the prediction under the negative prompt. In RCFG it is delta * s, the frame's *virtual
residual noise*: the s for which x = alpha z + beta s holds with a clean latent z, the encoded frame
(`self`) or what the negative prompt made of it in the first step (`initialize`). What surprises: s is
not handed on from step to step. The z that defines it is, which is exact, where a recursion over s
drifts by c_skip at every step and has to know how noise was added. Everything is in terms of clean
latents, since every prediction type is affine in them: u's is delta z + (1 - delta) x / alpha.
Shape legend: B samples, N negative samples, G guided samples.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from rearview.contract.frame import ANCHOR, LATENT
from rearview.contract.settings import Guidance, Settings
from rearview.engine.devices import upload
from rearview.engine.rows import Row

__all__ = ["Anchors", "anchor_of", "anchored", "guide", "negative_rows"]

Anchors = dict[int, Tensor]
"""Index of a sample to the clean latent (C, h, w) that it is guided away from."""


def anchored(settings: Settings) -> bool:
    """Whether frames under `settings` take an anchor along, from their first step to their last."""
    return settings.acting_guidance in (Guidance.SELF, Guidance.INITIALIZE)


def negative_rows(rows: Sequence[Row]) -> list[int]:
    """The samples that are also predicted under their negative prompt: one UNet row more for each."""
    return [index for index, row in enumerate(rows) if row.width > 1]


def anchor_of(planes: Mapping[str, Tensor], row: Row) -> Tensor | None:
    """The anchor with which a sample enters a step, (C, h, w): with SELF the encoded frame at first."""
    if row.operator.step == 0:
        return planes[LATENT] if row.settings.acting_guidance is Guidance.SELF else None
    return planes.get(ANCHOR)


def guide(
    clean_BCHW: Tensor,
    x_BCHW: Tensor,
    anchors: Mapping[int, Tensor],
    rows: Sequence[Row],
    alpha_B111: Tensor,
) -> Tensor:
    """Clean predictions (B, C, h, w), pushed away from the anchors by each row's own g and delta.

    `alpha_B111`: of the rows' steps. Rows without guidance are returned bit by bit as they came.
    """
    guided = [i for i, row in enumerate(rows) if row.settings.acting_guidance is not Guidance.NONE]
    if not guided:
        return clean_BCHW

    def column(values: list[float]) -> Tensor:
        return upload(torch.tensor(values, dtype=x_BCHW.dtype), x_BCHW.device).view(-1, 1, 1, 1)

    scale = column([rows[i].settings.guidance_scale for i in guided])
    delta = column([_delta(rows[i].settings) for i in guided])
    chosen = upload(torch.tensor(guided), x_BCHW.device)
    x_GCHW, clean_GCHW, alpha = (each.index_select(0, chosen) for each in (x_BCHW, clean_BCHW, alpha_B111))
    anchor_GCHW = torch.stack([anchors[i] for i in guided])
    away_GCHW = delta * anchor_GCHW + (1.0 - delta) * x_GCHW / alpha
    return clean_BCHW.index_copy(0, chosen, away_GCHW + scale * (clean_GCHW - away_GCHW))


def _delta(settings: Settings) -> float:
    return 1.0 if settings.acting_guidance is Guidance.FULL else settings.delta
