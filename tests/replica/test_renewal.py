"""Networks that are compiled beside a running replica are taken up when it holds no session."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from rearview.config import ServiceConfig, load_config
from rearview.contract.frame import Frame
from rearview.contract.session import SessionSpec
from rearview.engine.acceleration import making, stock
from rearview.engine.acceleration.packages import Compiled, Dims
from rearview.engine.engine import Engine
from rearview.engine.scheduler import CostTable
from rearview.replica import compiling, renewal
from rearview.replica.admitted import Admitted
from rearview.replica.build import Measuring, Parts, build_engine, examples, payloads
from rearview.replica.compiling import compile_span
from rearview.replica.kept import KeptTimings
from rearview.replica.renewal import Renewal
from rearview.replica.runner import EngineRunner
from support.frames import content
from support.toy import drain
from support.waiting import eventually
from torch import Tensor, nn

pytestmark = [pytest.mark.unit, pytest.mark.timeout(300)]

BEFORE_S = 60.0
"""What the test waits for happens in less."""


@pytest.fixture(autouse=True)
def _compiles_at_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Code that the network itself stands in for: so what changes is what is said and counted alone."""

    def compiled(package: Path, network: nn.Module, tensors: object, dims: Dims) -> Compiled:
        package.write_bytes(str(dims).encode())
        return network

    monkeypatch.setenv("REARVIEW_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(making, "LEAST_GAIN", 0.0)
    monkeypatch.setattr(making, "compile_to", compiled)
    monkeypatch.setattr(stock, "load", lambda package, network, dims: network)
    monkeypatch.setattr(compiling, "check_compiler", lambda: None)


@pytest.fixture
def config() -> ServiceConfig:
    model = {"checkpoint": "pocket", "width": 64, "height": 64, "dtype": "float32", "max_steps": 1}
    spans = [{"name": "own", "operators": ["encode", "denoise-0", "decode"], "slots": 1}]
    return load_config({"model": model, "topology": "fused", "spans": spans, "bank": {"interval": 2}})


class Replica:
    """As much of one as changes over."""

    def __init__(self, config: ServiceConfig) -> None:
        self.config, self.span = config, config.spans[0]
        self.admitted = Admitted(self.span.name, None)
        self.renewal = Renewal(config, self.span, self.admitted)
        self.parts: Parts | None = None
        self.runner = EngineRunner(self._build, lambda result: None)

    def _build(self) -> Engine:
        def built(parts: Parts, compiled: str) -> None:
            self.parts = parts
            self.renewal.built(parts, compiled)

        return build_engine(self.config, self.span, on_built=built)

    @property
    def example(self) -> SessionSpec:
        assert self.parts is not None
        return replace(next(iter(examples(self.config, self.parts.memory))), session_id="s")

    def pictures(self, engine: Engine) -> list[Tensor | None]:
        """Of a session that comes and goes."""
        spec, found = self.example, list[Tensor | None]()
        engine.open(spec)
        generator = torch.Generator().manual_seed(1)
        for ordinal in range(5):
            (name, grey), *_ = payloads(self.config, engine.span, spec)[0].items()
            picture = torch.randint(256, grey.shape, generator=generator, dtype=grey.dtype)
            engine.admit(Frame("s", ordinal, {name: picture}), 0.0)
            found += [content(left) for left in drain(engine)]
        engine.close("s")
        return found


@contextmanager
def stopped(replica: Replica) -> Iterator[Replica]:
    try:
        yield replica
    finally:
        replica.runner.stop()


async def test_a_replica_changes_over_as_soon_as_it_holds_no_session(
    config: ServiceConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(KeptTimings, "holds", lambda *_: True)  # Other work takes cores now and then.
    with stopped(Replica(config)) as replica:
        runner, own = replica.runner, replica.renewal
        await runner.ready()
        await own.begin(runner)
        before, eager = own.kernels, await runner.call(replica.pictures)
        assert not await own.look(runner), "nothing was compiled"
        await asyncio.to_thread(compile_span, config, replica.span, lambda text: None)
        await runner.call(lambda engine: engine.open(replica.example))
        assert not await own.look(runner), "its pictures would be of both"
        assert own.kernels == before
        await runner.call(lambda engine: engine.close("s"))
        assert await own.look(runner)
        assert not await own.look(runner), "once is enough"
        accelerated = await runner.call(_accelerated(replica))
        found = await runner.call(replica.pictures)
        await own.stop()
        pairs = zip(eager, found, strict=True)
        assert all(a is not None and b is not None and torch.equal(a, b) for a, b in pairs)
        assert await runner.call(_accelerated(replica)) > accelerated
        # As a replica that is started now.
        anew = await asyncio.to_thread(build_engine, config, replica.span)
        assert own.kernels == anew.kernels != before
        assert replica.admitted.cost == anew.frame_cost


def _accelerated(replica: Replica) -> Callable[[Engine], int]:
    """Counts the calls of the UNet that ran compiled."""
    assert replica.parts is not None
    (denoiser,) = replica.parts.model.denoisers.values()  # type: ignore[attr-defined]
    return lambda engine: int(denoiser.call.counts.accelerated)


async def test_what_is_half_made_is_left_alone(
    config: ServiceConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Until it was measured what frames cost with all of it."""
    with stopped(Replica(config)) as replica:
        await replica.runner.ready()
        await replica.renewal.begin(replica.runner)

        def ends(*_: object) -> None:
            raise KeyboardInterrupt

        with monkeypatch.context() as patched:
            patched.setattr(Measuring, "of", ends)
            with pytest.raises(KeyboardInterrupt):
                compile_span(config, replica.span, lambda text: None)
        assert not await replica.renewal.look(replica.runner)
        compile_span(config, replica.span, lambda text: None)
        assert await replica.renewal.look(replica.runner)
        await replica.renewal.stop()


async def test_the_watchdog_and_the_scheduler_are_told_of_the_costs(config: ServiceConfig) -> None:
    with stopped(Replica(config)) as replica:
        await replica.runner.ready()
        await replica.renewal.begin(replica.runner)
        compile_span(config, replica.span, lambda text: None)
        before = await replica.runner.call(_costs)
        assert await replica.renewal.look(replica.runner)
        scheduler, watchdog = await replica.runner.call(_costs)
        await replica.renewal.stop()
        assert scheduler is watchdog is not before[0]
        assert scheduler.forward_s.keys() == before[0].forward_s.keys()
        assert scheduler.ran == {}, "the first forward of each group is not thought to hang"


def _costs(engine: Engine) -> tuple[CostTable, CostTable]:
    """By which forwards are chosen, and by which they are watched."""
    return engine._scheduler.costs, engine._forwards._underway._costs


async def test_it_is_looked_for_as_long_as_the_replica_runs(
    config: ServiceConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(renewal, "LOOK_EVERY_S", 0.01)
    with stopped(Replica(config)) as replica:
        await replica.runner.ready()
        await replica.renewal.begin(replica.runner)
        before = replica.renewal.kernels
        await asyncio.to_thread(compile_span, config, replica.span, lambda text: None)
        await asyncio.to_thread(eventually, lambda: replica.renewal.kernels != before, BEFORE_S)
        await replica.renewal.stop()


async def test_networks_that_are_not_to_run_compiled_stay_as_they_are(config: ServiceConfig) -> None:
    unused = config.model_copy(update={"model": config.model.model_copy(update={"compiled": False})})
    with stopped(Replica(unused)) as replica:
        await replica.runner.ready()
        await replica.renewal.begin(replica.runner)
        assert replica.renewal._task is None
        await replica.renewal.stop()
