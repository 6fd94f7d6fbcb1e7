"""Networks that were compiled beside a running replica, and are taken up between sessions.

`rearview models compile` puts them on disk, and last of all what frames cost with them. A replica looks for
that now and then. It changes over when it holds no session: so each session has the pictures of one kind of
network from its first ordinal to its last, and what it computes with is what the replica said when it was
opened. The cost table, by which forwards are chosen and watched, and what a frame costs, by which sessions
are placed, change with it. Where forwards are captured in graphs a replica keeps what it has begun with.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from rearview.config import ServiceConfig, SpanConfig
from rearview.contract.cost import FrameCost
from rearview.contract.session import SessionSpec
from rearview.engine.acceleration.compiled import use
from rearview.engine.acceleration.stock import Stock
from rearview.engine.calibration import Timings
from rearview.engine.engine import Engine
from rearview.engine.networks.model import DiffusionModel
from rearview.errors import Refused
from rearview.replica.admitted import Admitted
from rearview.replica.build import Measuring, Parts, costs_of, examples, kernels_in
from rearview.replica.captured import captures
from rearview.replica.compiled import folder_of
from rearview.replica.runner import EngineRunner

__all__ = ["Renewal"]

logger = logging.getLogger(__name__)

LOOK_EVERY_S = 10.0


class _Found(NamedTuple):
    """What lies on disk."""

    stock: Stock
    measured: Sequence[tuple[SessionSpec, Timings]]
    """What frames cost with it, in sessions of each kind."""


class _Standing(NamedTuple):
    """Of an engine."""

    kernels: str
    frame_cost: FrameCost | None

    @classmethod
    def of(cls, engine: Engine) -> _Standing:
        return cls(engine.kernels, engine.frame_cost)


class Renewal:
    """What the networks of one replica compute with. For one event loop, but for what says otherwise."""

    def __init__(self, config: ServiceConfig, span: SpanConfig, admitted: Admitted) -> None:
        """`admitted`: is told what a frame costs."""
        self._config, self._span, self._admitted = config, span, admitted
        self.kernels = ""
        """In few characters: replicas that say the same give equal bits."""
        self._parts: Parts | None = None
        self._compiled = ""
        """What of them is compiled."""
        self._folder: Path | None = None
        """Where more may come to lie; None: nothing will."""
        self._task: asyncio.Task[None] | None = None

    def built(self, parts: Parts, compiled: str) -> None:
        """What the engine was put together from. By its thread, before `begin`."""
        self._parts, self._compiled = parts, compiled
        if self._config.model.compiled and not captures(self._config, parts.device):
            self._folder = folder_of(self._config, self._span, parts.device)

    async def begin(self, runner: EngineRunner) -> None:
        """Learn what the engine computes with, and look for more until it is stopped."""
        await runner.call(_Standing.of, self._learn)
        if self._folder is not None:
            self._task = asyncio.create_task(self._run(runner))

    async def stop(self) -> None:
        """Look for nothing any more."""
        if self._task is not None:
            self._task.cancel()
            await asyncio.gather(self._task, return_exceptions=True)

    async def look(self, runner: EngineRunner) -> bool:
        """Whether the engine has changed over. Raises Refused if it does not run any more."""
        found = await asyncio.to_thread(self._find)
        if found is None:
            return False
        return await runner.call(lambda engine: self._take(engine, found), self._learn) is not None

    async def _run(self, runner: EngineRunner) -> None:
        while True:
            await asyncio.sleep(LOOK_EVERY_S)
            try:
                await self.look(runner)
            except Refused:
                return  # Others see to a replica whose engine has ended.
            except Exception:  # The edge of a task: what runs goes on as it is.
                logger.exception("compiled networks could not be taken up")
                return

    def _find(self) -> _Found | None:
        """What lies on disk, if it is something else than what runs, and whole. Blocks; for any thread."""
        assert self._folder is not None, "nothing can come"
        stock, parts = Stock(self._folder), self._built
        if stock.digest in ("", self._compiled):
            return None
        kinds = list(examples(self._config, parts.memory))
        timings = Measuring(self._config, self._span, parts, stock.digest).kept.read(len(kinds))
        return None if timings is None else _Found(stock, list(zip(kinds, timings, strict=True)))

    def _take(self, engine: Engine, found: _Found) -> _Standing | None:
        """Change over, unless there is a session. By the engine's thread, which runs nothing for it: to what
        has no known cost a watchdog grants less than a slow forward takes.
        """
        parts, digest = self._built, found.stock.digest
        if engine.sessions:
            return None
        assert isinstance(parts.model, DiffusionModel), "only models without networks are another"
        use(found.stock, parts.model)
        self._compiled = digest
        costs = costs_of(self._config, parts, found.measured, ran_here=False)
        engine.renew(costs, kernels_in(self._config, self._span, parts, digest))
        logger.info("%s runs compiled networks from now on", self._span.name)
        return _Standing.of(engine)

    @property
    def _built(self) -> Parts:
        assert self._parts is not None, "asked before the engine was built"
        return self._parts

    def _learn(self, standing: _Standing | None) -> None:
        if standing is not None:
            self.kernels, self._admitted.cost = standing
