"""What the engine's benchmark measures, and what comes first: a run may be cut off."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace
from itertools import product

import torch
from rearview.engine.engine import Order

from loadtest.accelerators import ACCELERATORS
from loadtest.engine_cells import METHODS, Cell
from loadtest.engine_models import Size
from loadtest.peers import DIFFUSERS, STREAM_DIFFUSION, Peer

__all__ = ["Job", "jobs", "matching"]

Job = Cell | Peer

PACED_FPS = 30.0
FP8 = "float8_e4m3fn"
ALL_SESSIONS, FEW_SESSIONS = (1, 2, 4, 8, 16, 32, 64), (1, 4)
"""The few: of the smoke size, which is there to see the bench run."""


def jobs(size: Size, device: torch.device, *, peers: Iterable[str] = (DIFFUSERS,)) -> list[Job]:
    """All, each once, the most important first. `peers`: whose code is at hand."""
    on_gpu, is_small = device.type == "cuda", size.name == "smoke"
    sessions = FEW_SESSIONS if is_small else ALL_SESSIONS
    together, first = (4, "eager") if is_small or not on_gpu else (8, "compiled graphs")
    found: list[Job] = []
    for group in _groups(first, together, sessions, on_gpu=on_gpu):
        found += [job for job in group if isinstance(job, Cell) or job.who in peers]
    return list(dict.fromkeys(found))


def matching(found: Sequence[Job], only: Sequence[str]) -> list[Job]:
    """Those in whose names all of some words stand; all of them without words."""
    return [job for job in found if all(word in job.name for word in only)]


def _groups(first: str, together: int, sessions: Sequence[int], *, on_gpu: bool) -> Iterator[Iterable[Job]]:
    """By importance. `first`: the accelerator of most cells; `together`: sessions of most cells."""
    best = "compiled graphs" if on_gpu else "compiled"
    core = [Cell("plain", 4, n) for n in (together, 1, 16) if n in sessions]
    core += [Cell("streamv2v", 4, n) for n in (together, 1, 16) if n in sessions]
    core += [Cell("live2diff", 2, n) for n in (together, 1) if n in sessions]
    core += [Cell("plain", 1, n) for n in (together, 1, 16) if n in sessions]
    yield [replace(cell, accelerator=first) for cell in core]
    yield [Peer(DIFFUSERS, 4, n, "eager") for n in (1, together)]
    yield [Peer(STREAM_DIFFUSION, 4, n, "eager") for n in (1, together)]
    paced = Cell("plain", 4, 1, accelerator=first, paced_fps=PACED_FPS)
    yield [replace(paced, order=order) for order in Order]
    yield [Cell("adapters", 4, n, accelerator=first) for n in (together, 1)]
    yield [replace(cell, accelerator=best) for cell in core[:1]]
    yield [Peer(DIFFUSERS, 4, together, "compiled")]
    yield [replace(cell, accelerator=best) for cell in core[1:2]]
    yield [Peer(DIFFUSERS, 4, 1, each) for each in ("compiled", "compiled graphs")[: 2 if on_gpu else 1]]
    yield [replace(Cell("live2diff", 2, n, storage=FP8), accelerator=first) for n in (1, together)]
    yield [Cell("both", 2, n, accelerator=first) for n in (together, 1)]
    yield [replace(cell, accelerator="graphs") for cell in core if on_gpu]
    yield [replace(cell, accelerator="eager") for cell in core]
    mixed = Cell("streamv2v", 0, 16 if 16 in sessions else together, accelerator=first)
    yield [mixed, replace(mixed, max_batch=1)]
    yield [Cell("plain", 4, n, order, first) for n, order in product((1, together), Order)]
    yield [Cell("streamv2v", 4, n, order, first) for n, order in product((1, together), Order)]
    yield [replace(cell, accelerator=best) for cell in core[2:]]
    yield [Peer(STREAM_DIFFUSION, 4, 1, "compiled")]
    usable = ACCELERATORS if on_gpu else ("eager", "compiled")
    for accelerator in (first, *(each for each in usable if each != first)):
        yield _whole(sessions, accelerator)


def _whole(sessions: Sequence[int], accelerator: str) -> Iterator[Cell]:
    """Every method, number of steps, number of sessions and order. One step has one order."""
    for order, method, steps, count in product(Order, METHODS, (4, 2, 1, 3), sessions):
        if steps > 1 or order is Order.BACK_TO_BACK:
            yield Cell(method, steps, count, order, accelerator)
