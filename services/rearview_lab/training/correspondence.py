"""Teaches self-attention where a token was: queries must find the keys of the same content in earlier frames.

A feature bank can steady only what attention finds again. Left to itself the attention of a small denoiser
stays a mean over the picture, or follows the tokens with the largest keys. The motion of training clips is
known exactly, so where each token was can be named: the target is the token itself and, in the frames that
the bank would hold, the four tokens around the place it came from, weighted bilinearly, all frames alike.
Tokens of other clips are wrong answers too: a clip's window is small, and the product's pictures are not.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

NUM_QUERIES = 32  # of each frame, drawn anew


@dataclass
class _Seen:
    """Queries and keys of one layer in one forward, ``(row, token, channel)``."""

    query: Tensor
    key: Tensor
    num_heads: int
    num_taught: int
    """Heads, from the first on."""


class Correspondence:
    """Watches the self-attention of a denoiser. After the middle block every head is taught; before it the
    first head of each layer, so that the others may go on pooling."""

    def __init__(self, unet: nn.Module, *, max_frames: int) -> None:
        """`max_frames`: of the bank."""
        self._max_frames = max_frames
        self._seen: list[_Seen] = []
        self._layers: list[tuple[Any, int]] = []
        for name, module in unet.named_modules():
            if name.endswith("attn1") and not name.startswith("mid_block"):
                attention: Any = module
                self._layers.append((attention, attention.heads if name.startswith("up_blocks") else 1))

    @contextmanager
    def watched(self) -> Iterator[None]:
        """Forwards inside, those with gradient, count for the next loss."""
        self._seen.clear()
        hooks = [
            layer.register_forward_pre_hook(self._watcher(layer, taught)) for layer, taught in self._layers
        ]
        try:
            yield
        finally:
            for hook in hooks:
                hook.remove()

    def loss(self, motion: Tensor) -> Tensor:
        """Mean cross-entropy over what was watched, in nats.

        `motion`: ``(K, F - 1, 2, 3)``, from a frame's coordinates (-1..1) to those of the frame before.
        """
        losses = [self._layer_loss(seen, motion) for seen in self._seen]
        self._seen.clear()
        return torch.stack(losses).mean()

    def _watcher(self, layer: Any, num_taught: int) -> Any:
        def watch(module: nn.Module, inputs: tuple[Tensor, ...]) -> None:
            if torch.is_grad_enabled():
                tokens = inputs[0]
                self._seen.append(_Seen(layer.to_q(tokens), layer.to_k(tokens), layer.heads, num_taught))

        return watch

    def _layer_loss(self, seen: _Seen, motion: Tensor) -> Tensor:
        rows, tokens, channels = seen.query.shape
        side, width = round(tokens**0.5), channels // seen.num_heads
        taught = slice(seen.num_taught * width)
        chosen = torch.randperm(tokens, device=seen.query.device)[:NUM_QUERIES]
        query = seen.query[:, chosen, taught].unflatten(-1, (-1, width))
        key = seen.key[:, :, taught].unflatten(-1, (-1, width))
        logits = torch.einsum("bphd,cnhd->hbpcn", query, key) / width**0.5
        logits = logits.masked_fill(self._hidden(rows, motion)[None, :, None, :, None], float("-inf"))
        likelihood = logits.flatten(3).log_softmax(dim=-1)
        index, weight = targets(motion, side, chosen, self._max_frames)
        found = likelihood.gather(3, index[None].expand(len(likelihood), -1, -1, -1))
        loss: Tensor = -(found.nan_to_num(neginf=0.0) * weight).sum(-1).mean()
        return loss

    def _hidden(self, rows: int, motion: Tensor) -> Tensor:
        """``(row, row)``: frames of the same clip that the bank does not hold for the first one."""
        length = motion.shape[1] + 1
        number = torch.arange(rows, device=motion.device)
        age = number[:, None] - number[None, :]
        same = number[:, None] // length == number[None, :] // length
        return same & ((age < 0) | (age > self._max_frames))


def targets(motion: Tensor, side: int, chosen: Tensor, max_frames: int) -> tuple[Tensor, Tensor]:
    """Where tokens are found: numbers of tokens over all rows, and weights that add up to one.

    `chosen`: ``(P,)`` tokens of a frame of ``side * side``. Both are ``(row, P, 4 * (1 + max_frames))``.
    """
    num_clips, length = motion.shape[0], motion.shape[1] + 1
    bottom = motion.new_tensor([0.0, 0.0, 1.0]).expand(num_clips, length - 1, 1, 3)
    # From each frame to the one before it; from the first one nowhere.
    step = torch.eye(3).to(motion).repeat(num_clips, length, 1, 1)
    step[:, 1:] = torch.cat([motion, bottom], dim=2)
    centre = (torch.stack([chosen % side, chosen // side]).to(motion) * 2 + 1) / side - 1
    place = torch.cat([centre, torch.ones_like(centre[:1])]).expand(num_clips, length, 3, -1)
    row = torch.arange(num_clips * length, device=motion.device).view(num_clips, length, 1, 1)
    frame = row % length
    indices, weights = [], []
    for age in range(max_frames + 1):
        index, weight = _around(place[:, :, :2], side)
        exists = frame >= age
        indices.append(torch.where(exists, index + (row - age) * side * side, 0))
        weights.append(weight * exists)
        place = step.roll(age, dims=1) @ place
    index, weight = (torch.cat(parts, dim=2).flatten(0, 1).mT for parts in (indices, weights))
    return index, weight / weight.sum(-1, keepdim=True)


def _around(place: Tensor, side: int) -> tuple[Tensor, Tensor]:
    """The four tokens around places ``(..., 2, P)`` and their weights, ``(..., 4, P)``: zero outside."""
    at = ((place + 1) * side - 1) / 2
    inside = ((at >= -0.5) & (at <= side - 0.5)).all(-2)
    low = at.floor()
    (part_x, part_y), (low_x, low_y) = (at - low).unbind(-2), low.unbind(-2)
    index, weight = [], []
    for down in (0, 1):
        for right in (0, 1):
            x, y = (low_x + right).clamp(0, side - 1), (low_y + down).clamp(0, side - 1)
            index.append((y * side + x).long())
            share_x, share_y = (part_x if right else 1 - part_x), (part_y if down else 1 - part_y)
            weight.append(share_x * share_y * inside)
    return torch.stack(index, dim=-2), torch.stack(weight, dim=-2)
