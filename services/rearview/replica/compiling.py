"""Compiling a span's networks for later starts: what its sessions run is watched, then made one by one.

At last it is measured what frames cost with them, which tells replicas that run that all is there
(`renewal.py`).

Sessions with a temporal cache are not among them: where a past lies is part of what their forwards are.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace

from rearview.config import ServiceConfig, SpanConfig
from rearview.contract.frame import Frame
from rearview.contract.session import SessionSpec
from rearview.engine.acceleration.compiled import use
from rearview.engine.acceleration.making import Watched, check_compiler, make
from rearview.engine.acceleration.stock import Artefact
from rearview.engine.devices import pick_device
from rearview.engine.engine import Engine
from rearview.engine.networks.model import DiffusionModel
from rearview.engine.planes import Planes
from rearview.engine.scheduler import CostTable, Scheduler
from rearview.errors import ConfigError
from rearview.replica.build import Measuring, Parts, bare, examples, parts_of, payloads
from rearview.replica.compiled import stock_of

__all__ = ["OnCompiled", "compile_span", "told"]

OnCompiled = Callable[[str], None]
"""Is told in a few words what is done."""
TOGETHER = 2
"""Sessions whose rows share forwards, where batches are watched."""


def compile_span(
    config: ServiceConfig, span_config: SpanConfig, on_progress: OnCompiled
) -> Sequence[Artefact]:
    """Make what is missing of a span's compiled networks; returns all that there are. Takes minutes. Raises
    ConfigError for a model without networks, and CannotCompile without a compiler.
    """
    stock = stock_of(config, span_config, pick_device(config.model.device))
    if stock is None:
        raise ConfigError("there is nothing to compile, or no folder to keep it in (REARVIEW_CACHE)")
    check_compiler()
    parts = parts_of(config, span_config, TOGETHER)
    assert isinstance(parts.model, DiffusionModel), "only models without networks are another"
    watched = Watched(parts.model)
    on_progress(f"{span_config.name}: looking at what runs")
    for spec in _kinds(config, parts):
        _play(parts, spec, payloads(config, parts.span, spec)[0], span_config)
    wanted = [seen for seen in watched.calls if not stock.knows(seen.key)]
    for number, seen in enumerate(wanted, 1):
        what = f"{span_config.name}: {seen.part}, {'several samples' if seen.samples > 1 else 'one sample'}"
        on_progress(f"{what}, compiling {number} of {len(wanted)}")
        started_s = time.monotonic()
        made = make(seen, stock, on_progress)
        on_progress(f"{what}: {told(made)}, made in {time.monotonic() - started_s:.0f} s")
    if stock.digest:
        use(stock, parts.model)
        on_progress(f"{span_config.name}: measuring what frames cost with them")
        kinds = list(examples(config, parts.memory))
        Measuring(config, span_config, parts, stock.digest).of(kinds, on_progress)
    return stock.artefacts


def told(artefact: Artefact) -> str:
    """What came of it."""
    if not artefact.eager_seconds:
        return "cannot be compiled"
    gain = artefact.eager_seconds / artefact.seconds
    ms = f"{1e3 * artefact.eager_seconds:.1f} -> {1e3 * artefact.seconds:.1f} ms ({gain:.2f} x)"
    return ms if artefact.file else f"{ms}, not kept: {_why(gain)}"


def _why(gain: float) -> str:
    return "no faster" if gain < 1.03 else "not exact enough"


def _kinds(config: ServiceConfig, parts: Parts) -> Iterator[SessionSpec]:
    """A session of each kind that is compiled for, what is the service's default first."""
    first = next(iter(examples(config, parts.memory)))
    kinds = [first] if first.bank is None else [first, replace(first, bank=None)]
    yield from dict.fromkeys(each for kind in kinds for each in (kind, bare(kind)))
    for name in config.model.merged_adapters:
        yield replace(first, settings=replace(bare(first).settings, adapters=name))


def _play(parts: Parts, spec: SessionSpec, planes: Planes, span_config: SpanConfig) -> None:
    """A session alone, until its bank is full and has been read with and without a write; then two of them,
    a few frames more. Frames come one by one, as from a camera.
    """
    engine = Engine(parts.span, parts.model, parts.memory, Scheduler(CostTable(), span_config.max_batch))
    bank = spec.bank
    full = 2 if bank is None else bank.interval * (1 + bank.max_frames)
    few = 2 if bank is None else 1 + bank.interval
    names = "ab"[: min(TOGETHER, span_config.fixed_slots or TOGETHER)]
    for name in names:
        engine.open(replace(spec, session_id=name))
        opened = names[: names.index(name) + 1]
        for _ in range(full if name == names[0] else few):
            _frame_each(engine, opened, planes)
    for name in names:
        engine.close(name)


def _frame_each(engine: Engine, sessions: Sequence[str], planes: Planes) -> None:
    for session_id in sessions:
        standing = engine.standing(session_id)
        assert standing is not None, "it was opened"
        engine.admit(Frame(session_id, standing.expected, planes), 0.0)
    while engine.has_work:
        engine.step(0.0)
