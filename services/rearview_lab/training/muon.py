"""Muon: momentum whose matrix updates are orthogonalised, with AdamW for everything that is not a matrix.

Kernels of convolutions are flattened to matrices. Matrices of one shape are stacked and orthogonalised
together, which keeps the cost small for networks of many small layers.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor, nn

from rearview_lab.training.precision import multiplies_bfloat16

_NEWTON_SCHULZ = (3.4445, -4.7750, 2.0315)
MUON_MOMENTUM = 0.95
NUM_NEWTON_SCHULZ_STEPS = 5


def orthogonalise(matrix_BMN: Tensor) -> Tensor:
    """Approximate the nearest orthogonal matrix of each row by a quintic Newton-Schulz iteration."""
    a, b, c = _NEWTON_SCHULZ
    x = matrix_BMN / (matrix_BMN.norm(dim=(1, 2), keepdim=True) + 1e-7)
    if multiplies_bfloat16(x.device):
        x = x.bfloat16()
    tall = x.shape[1] > x.shape[2]
    if tall:
        x = x.mT
    for _ in range(NUM_NEWTON_SCHULZ_STEPS):
        gram = x @ x.mT
        x = a * x + (b * gram + c * gram @ gram) @ x
    found: Tensor = (x.mT if tall else x).float()
    return found


class Muon:
    """Muon on the matrices of some modules, AdamW on their other tensors and on ``plain`` modules."""

    def __init__(
        self, matrices: Iterable[nn.Module], plain: Iterable[nn.Module] = (), *, adam_lr: float = 1e-3
    ) -> None:
        self._groups: dict[tuple[int, int], list[nn.Parameter]] = defaultdict(list)
        others = [parameter for module in plain for parameter in module.parameters()]
        for module in matrices:
            for parameter in module.parameters():
                if parameter.ndim >= 2:
                    self._groups[(parameter.shape[0], parameter[0].numel())].append(parameter)
                else:
                    others.append(parameter)
        self._momenta = {
            shape: torch.zeros(len(group), *shape, device=group[0].device)
            for shape, group in self._groups.items()
        }
        self._adam = torch.optim.AdamW(others, lr=adam_lr, betas=(0.9, 0.98), weight_decay=0.0)
        self._adam_lr = adam_lr

    def parameters(self) -> list[nn.Parameter]:
        """Every parameter this optimiser moves."""
        found = [parameter for group in self._groups.values() for parameter in group]
        return found + [parameter for group in self._adam.param_groups for parameter in group["params"]]

    @torch.no_grad()
    def step(self, lr: float, *, relative: float) -> None:
        """Move by the peak rate ``lr`` times ``relative`` (AdamW: its own rate), then clear gradients."""
        nn.utils.clip_grad_norm_(self.parameters(), 1.0)
        for shape, group in self._groups.items():
            gradient = torch.stack(
                [
                    torch.zeros(shape, device=p.device) if p.grad is None else p.grad.reshape(shape)
                    for p in group
                ]
            ).float()
            momentum = self._momenta[shape]
            momentum.mul_(MUON_MOMENTUM).add_(gradient)
            update = orthogonalise(gradient + MUON_MOMENTUM * momentum)
            update *= -lr * relative * 0.2 * max(shape) ** 0.5
            for parameter, delta in zip(group, update, strict=True):
                parameter.add_(delta.view_as(parameter))
        for options in self._adam.param_groups:
            options["lr"] = self._adam_lr * relative
        self._adam.step()
        for parameter in self.parameters():
            parameter.grad = None

    def state_dict(self) -> dict[str, Any]:
        return {"momenta": self._momenta, "adam": self._adam.state_dict()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        for shape, momentum in state["momenta"].items():
            self._momenta[shape].copy_(momentum)
        self._adam.load_state_dict(state["adam"])
