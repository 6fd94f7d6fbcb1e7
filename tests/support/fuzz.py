"""How much is tried where inputs are drawn at random, and bytes that are nearly right.

A run in CI is small. `REARVIEW_FUZZ=100` tries a hundred times as much; that is read here and nowhere else.
"""

from __future__ import annotations

import os
import random
from collections.abc import Iterator, Sequence

from hypothesis import HealthCheck, settings

__all__ = ["few", "mutants", "tries"]

SCALE = max(1, int(os.environ.get("REARVIEW_FUZZ", "1")))
MAX_CHANGES = 4
_VALUES = (0x00, 0x01, 0x7F, 0x80, 0xFF)


def tries(count: int) -> int:
    """How many, where CI makes `count`."""
    return SCALE * count


def few(count: int) -> settings:
    """Hypothesis with `count` examples in CI. Real servers are at work: no deadline for one."""
    slow = [HealthCheck.too_slow, HealthCheck.function_scoped_fixture]
    return settings(
        max_examples=tries(count), deadline=None, derandomize=SCALE == 1, suppress_health_check=slow
    )


def mutants(originals: Sequence[bytes], count: int, seed: int = 0) -> Iterator[bytes]:
    """Bytes that differ from one of `originals` in few places: changed, cut, doubled, moved, mixed."""
    chance = random.Random(seed)
    for _ in range(count):
        content = bytearray(chance.choice(originals))
        for _ in range(chance.randint(1, MAX_CHANGES)):
            _change(content, chance, originals)
        yield bytes(content)


def _change(content: bytearray, chance: random.Random, originals: Sequence[bytes]) -> None:
    at = chance.randrange(len(content) + 1)
    end = min(len(content), at + chance.choice((1, 1, 2, 4, 16, 64)))
    match chance.randrange(7):
        case 0:
            content[at:end] = bytes(chance.choice(_VALUES) for _ in range(end - at))
        case 1:
            for place in range(at, end):
                content[place] ^= 1 << chance.randrange(8)
        case 2:
            del content[at:end]
        case 3:
            content[at:at] = chance.randbytes(end - at + 1)
        case 4:
            content[at:at] = content[at:end]
        case 5:
            del content[at:]
        case _:
            other = chance.choice(originals)
            start = chance.randrange(len(other) + 1)
            content[at:end] = other[start : start + chance.randrange(1, 64)]
