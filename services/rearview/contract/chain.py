"""The chain of operators, and its cut into spans.

One frame passes `encode → denoise-0 → … → denoise-(S-1) → decode`. A span is a contiguous piece of that
chain; each span is served by one deployment. The cut is by denoising step, never inside the UNet.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from enum import Enum
from functools import cached_property

__all__ = ["Operator", "OperatorKind", "Span", "chain"]


class OperatorKind(Enum):
    """Which network an operator runs."""

    ENCODE = "encode"
    DENOISE = "denoise"
    DECODE = "decode"

    __hash__ = object.__hash__  # There is one of each. Rows are grouped by it, and Enum's own is in Python.


@dataclass(frozen=True, slots=True)
class Operator:
    """One link of the chain."""

    kind: OperatorKind
    step: int = 0
    """Denoising step index k, 0 = noisiest. 0 for encode and decode."""

    @property
    def name(self) -> str:
        return f"denoise-{self.step}" if self.kind is OperatorKind.DENOISE else self.kind.value

    @classmethod
    def parse(cls, name: str) -> Operator:
        """Undo `name`. Raises ValueError."""
        kind, _, step = name.partition("-")
        denoises = kind == OperatorKind.DENOISE.value
        operator = cls(OperatorKind(kind), int(step) if denoises and step.isdecimal() else 0)
        if operator.name != name:
            raise ValueError(f"{name!r} is not an operator")
        return operator


def chain(max_steps: int) -> tuple[Operator, ...]:
    """The whole chain with `max_steps` denoising steps."""
    denoise = (Operator(OperatorKind.DENOISE, step) for step in range(max_steps))
    return (Operator(OperatorKind.ENCODE), *denoise, Operator(OperatorKind.DECODE))


@dataclass(frozen=True)
class Span:
    """A contiguous piece of the chain."""

    name: str
    operators: tuple[Operator, ...]

    @classmethod
    def parse(cls, name: str, operators: Sequence[str]) -> Span:
        """A span from operator names. Raises ValueError."""
        return cls(name, tuple(Operator.parse(operator) for operator in operators))

    @cached_property
    def kinds(self) -> frozenset[OperatorKind]:
        """The networks that the span needs."""
        return frozenset(operator.kind for operator in self.operators)

    def ends(self, steps: int) -> bool:
        """Whether no denoising step of a frame that has so many comes after it."""
        return OperatorKind.DECODE in self.kinds or steps - 1 in self.steps

    @cached_property
    def steps(self) -> tuple[int, ...]:
        """Indices of its denoising steps."""
        return tuple(each.step for each in self.operators if each.kind is OperatorKind.DENOISE)
