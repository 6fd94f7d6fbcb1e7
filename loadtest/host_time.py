"""What the engine itself costs: CPU time of its Python a row, without the networks.

    python -m loadtest.host_time

Sessions are closed loops that keep some frames waiting, so that every forward is full. The model moves its
planes and leaves zeros to the memories, which have as many layers as Stable Diffusion's and hardly any
tokens. What is counted is the CPU time of the one thread, letting frames in included, without the model's
forwards; the share of the memories (what they read and write, tensors included) is told beside it. In other
arms rows go through the real denoiser, around a UNet that does nothing: only the UNet's call is not counted.
"""

from __future__ import annotations

import gc
import statistics
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, field, replace
from enum import Enum
from pathlib import Path
from typing import Annotated, ParamSpec, TypeVar

import torch
import typer
from rearview.contract.chain import OperatorKind, Span, chain
from rearview.contract.frame import LATENT, PICTURE, Frame
from rearview.contract.memories import BankSettings, CacheSettings
from rearview.contract.session import SessionSpec
from rearview.contract.settings import Blend, NoiseRule, Settings, WeightedPrompt
from rearview.engine.engine import Engine
from rearview.engine.memory.bank.layers import BankLayer, BankLayout
from rearview.engine.memory.bank.view import BANK, BankUpdate
from rearview.engine.memory.build import CacheOptions, Layouts, MemoryOptions, build_memories
from rearview.engine.memory.cache.layers import CacheLayer, CacheLayout
from rearview.engine.memory.cache.view import CACHE, CacheUpdate
from rearview.engine.memory.compose import Memories
from rearview.engine.memory.protocol import Updates, Views
from rearview.engine.networks.call import UNetInputs
from rearview.engine.networks.denoise import Denoiser
from rearview.engine.networks.model import DiffusionModel, Forward, Model, NullModel, row_group
from rearview.engine.networks.sampling import Schedule
from rearview.engine.rows import Row
from rearview.engine.scheduler import CostTable, Scheduler

from loadtest.engine_models import byte_conditioning
from loadtest.figures import RESULTS, Figure, ResultFile, show

__all__ = ["Arm", "Cost", "Work", "arms", "figures", "main", "measure"]

STEPS = 4
SIDE = 64
"""Pixels: 8 x 8 latents. Larger ones cost the device more, and the host no more."""
WAITING = 3
"""Frames of a session that are in flight."""
MAX_BATCH = 16
BANK_LAYERS, CACHE_LAYERS = 16, 20
"""As Stable Diffusion 1.5 has them, with motion modules."""
CHANNELS, HEADS = 8, 2
TARGET_US = 50.0
CPU = torch.device("cpu")

P = ParamSpec("P")
T = TypeVar("T")


class Work(Enum):
    """What a row does beside waiting for its turn."""

    NONE = ""
    FIXED = "denoised with fixed noise"
    FRESH = "denoised with fresh noise"
    BLEND = "denoised in mid-blend"
    """Every frame under a mix of its own."""

    @property
    def span(self) -> Span:
        """Denoising steps alone where there are networks."""
        return Span("fused", chain(STEPS) if self is Work.NONE else chain(STEPS)[1:-1])

    def settings(self, number: int) -> Settings:
        """Of the session of that number."""
        plain = Settings(f"prompt {number}", 0.6, STEPS, number)
        if self is Work.FRESH:
            return replace(plain, noise_rule=NoiseRule.FRESH)
        if self is Work.BLEND:
            start = (WeightedPrompt(f"start {number}", 1.0),)
            return replace(plain, blend=Blend(start, 0, 1_000_000))
        return plain


@dataclass(frozen=True, slots=True)
class Arm:
    """One setting to measure."""

    memory: str
    """`plain`, `bank` or `cache`."""
    sessions: int
    active: int
    """Of them, those that send frames."""
    tenants: int = 1
    work: Work = Work.NONE

    @property
    def setting(self) -> str:
        idle = "" if self.active == self.sessions else f", {self.active} of them active"
        tenants = "" if self.tenants == 1 else f", {self.tenants} tenants"
        layers = {"plain": "", "bank": f" of {BANK_LAYERS} layers", "cache": f" of {CACHE_LAYERS} layers"}
        memory = "no memory" if self.memory == "plain" else f"{self.memory}{layers[self.memory]}"
        work = f", {self.work.value}" if self.work.value else ""
        sessions = f"{self.sessions} sessions{idle}{tenants}"
        return f"{STEPS} steps, batches of {MAX_BATCH}, {memory}, {sessions}{work}"


TARGETED = (Arm("plain", 64, 64), Arm("plain", 256, 256))


@dataclass(frozen=True, slots=True)
class Cost:
    """What a row of an arm costs, microseconds of CPU time."""

    row_us: float
    """All but the forward."""
    memory_us: float
    """Of it, in the memories."""
    rows: int
    """That were measured."""
    rows_per_forward: float


@dataclass
class Stopwatch:
    """CPU time of this thread inside some functions, nanoseconds."""

    spent_ns: int = 0

    def around(self, function: Callable[P, T]) -> Callable[P, T]:
        def timed(*arguments: P.args, **named: P.kwargs) -> T:
            begin_ns = time.thread_time_ns()
            try:
                return function(*arguments, **named)
            finally:
                self.spent_ns += time.thread_time_ns() - begin_ns

        return timed


class IdleModel(NullModel):
    """Moves its planes, and leaves zeros of the right shape to each memory."""

    @property
    def layouts(self) -> Layouts:
        bank = [BankLayer(f"layer.{n}", 3, CHANNELS, CHANNELS, fuses=n < 4) for n in range(BANK_LAYERS)]
        cache = [CacheLayer(f"layer.{n}", 3, CHANNELS, HEADS) for n in range(CACHE_LAYERS)]
        return Layouts(bank=BankLayout(tuple(bank)), cache=CacheLayout(tuple(cache), 8, 16))

    def forward(self, rows: Sequence[Row], views: Views) -> Forward:
        forward = super().forward(rows, views)
        samples = len(forward.outputs)
        if (bank := views.of(BANK)) is not None:
            kept = [len(storage.tensors) for storage in bank.storage] if bank.key.leaves else []
            zeros = torch.zeros(samples, 1, CHANNELS)
            forward.updates[BANK.name] = BankUpdate(tuple((zeros,) * count for count in kept))
        if views.of(CACHE) is not None:
            zeros = torch.zeros(samples, 1, CHANNELS)
            forward.updates[CACHE.name] = CacheUpdate(((zeros, zeros),) * CACHE_LAYERS)
        return forward


def _idle_call(inputs: UNetInputs, views: Views) -> tuple[torch.Tensor, Updates]:
    return torch.zeros_like(inputs.latent_BCHW), Updates()


@dataclass
class Loop:
    """An engine and the sessions that keep it busy."""

    arm: Arm
    forwards: Stopwatch = field(default_factory=Stopwatch)
    memories: Stopwatch = field(default_factory=Stopwatch)
    rows: int = 0
    batches: int = 0
    in_flight: dict[str, int] = field(default_factory=dict)
    sent: dict[str, int] = field(default_factory=dict)

    def __post_init__(self) -> None:
        model, specs = self._model(), [self._spec(number) for number in range(self.arm.sessions)]
        memory, span = self._memory(model), self.arm.work.span
        self.burst = max(WAITING, memory.warm_up_frames(specs[0]))
        scheduler = Scheduler(_costs(span, model, memory, specs[0]), MAX_BATCH)
        memory.gather = self.memories.around(memory.gather)  # type: ignore[method-assign]
        memory.scatter = self.memories.around(memory.scatter)  # type: ignore[method-assign]
        self.engine = Engine(span, model, memory, scheduler)
        self.planes = {PICTURE: torch.zeros(16, dtype=torch.uint8)}
        if self.arm.work is not Work.NONE:
            self.planes = {LATENT: torch.zeros(4, SIDE // 8, SIDE // 8)}
        for spec in specs:
            self.engine.open(spec)
        for spec in specs[: self.arm.active]:
            self.sent[spec.session_id] = self.in_flight[spec.session_id] = 0
            for _ in range(self.burst):
                self._send(spec.session_id)

    def run(self, rows: int) -> None:
        """At least so many more rows."""
        until = self.rows + rows
        while self.rows < until:
            assert self.engine.has_work, "as a replica asks before each step"
            result = self.engine.step(time.monotonic())
            assert result.batch is not None, "every session has frames in flight"
            assert not result.batch.failed, "a forward has failed: see the log"
            self.rows, self.batches = self.rows + result.batch.rows, self.batches + 1
            for frame in result.emissions:
                name = frame.session_id
                self.engine.retained.acknowledge(name, frame.ordinal)
                self.in_flight[name] -= 1
                while self.in_flight[name] < WAITING:
                    self._send(name)

    def _send(self, name: str) -> None:
        assert self.engine.admit(Frame(name, self.sent[name], self.planes), time.monotonic())
        self.sent[name] += 1
        self.in_flight[name] += 1

    def _model(self) -> Model:
        """Of which the forwards, or the calls of its UNet, are not counted."""
        if self.arm.work is Work.NONE:
            idle = IdleModel()
            idle.forward = self.forwards.around(idle.forward)  # type: ignore[method-assign]
            return idle
        conditioning = byte_conditioning(CHANNELS, torch.float32, CPU)
        denoiser = Denoiser(None, Schedule({}), conditioning, torch.float32)
        denoiser.call = self.forwards.around(_idle_call)
        return DiffusionModel(None, denoiser, device=CPU, dtype=torch.float32)

    def _spec(self, number: int) -> SessionSpec:
        return SessionSpec(
            f"{number:032x}",
            SIDE,
            SIDE,
            STEPS,
            self.arm.work.settings(number),
            f"tenant {number % self.arm.tenants}",
            bank=BankSettings() if self.arm.memory == "bank" else None,
            cache=CacheSettings() if self.arm.memory == "cache" else None,
        )

    def _memory(self, model: Model) -> Memories:
        options = MemoryOptions(
            num_slots=self.arm.sessions,
            height=SIDE,
            width=SIDE,
            dtype=torch.float32,
            bank=BankSettings() if self.arm.memory == "bank" else None,
            cache=CacheOptions() if self.arm.memory == "cache" else None,
        )
        return build_memories(self.arm.work.span, model.layouts, options)


def _costs(span: Span, model: Model, memory: Memories, spec: SessionSpec) -> CostTable:
    """As of a GPU: 5 ms and one for each row of a denoising step, the rest a fifth of it."""
    sizes = (1, 2, 4, 8, MAX_BATCH)
    groups = {row_group(model, memory, spec, spec.settings, each): each.kind for each in span.operators}
    share = {kind: 1e-3 if kind is OperatorKind.DENOISE else 2e-4 for kind in OperatorKind}
    return CostTable({group: {n: share[kind] * (5 + n) for n in sizes} for group, kind in groups.items()})


def measure(arm: Arm, rows: int, rounds: int) -> Cost:
    """The median of some rounds of so many rows, after a round that is not counted."""
    loop = Loop(arm)
    loop.run(max(rows, 3 * loop.burst * arm.active))
    gc.collect()
    found = []
    first_batches = loop.batches
    for _ in range(rounds):
        forwards_ns, memories_ns, before = loop.forwards.spent_ns, loop.memories.spent_ns, loop.rows
        begin_ns = time.thread_time_ns()
        loop.run(rows)
        spent_ns = time.thread_time_ns() - begin_ns
        count = loop.rows - before
        host_ns = spent_ns - (loop.forwards.spent_ns - forwards_ns)
        found.append((host_ns / count, (loop.memories.spent_ns - memories_ns) / count, count))
    host_ns, memory_ns = (statistics.median(each[part] for each in found) for part in (0, 1))
    total = sum(count for *_, count in found)
    return Cost(host_ns / 1e3, memory_ns / 1e3, total, total / (loop.batches - first_batches))


def arms(counts: Sequence[int]) -> Iterator[Arm]:
    """Every memory at every number of sessions; the most of them idle once, once apart by tenant, and once
    with each kind of work.
    """
    for memory in ("plain", "bank", "cache"):
        for count in counts:
            yield Arm(memory, count, count)
    most = max(counts)
    yield Arm("plain", most, min(8, most))
    yield Arm("plain", most, most, tenants=most)
    for work in list(Work)[1:]:
        yield Arm("plain", most, most, work=work)


def figures(measured: Sequence[tuple[Arm, Cost]]) -> Iterator[Figure]:
    """Of each arm, with a target where the project has one."""
    for arm, cost in measured:
        target = TARGET_US if arm in TARGETED else None
        yield Figure("host time of a row", arm.setting, cost.row_us, "µs", target, at_most=True)
        if arm.memory != "plain":
            yield Figure("of it, in the memory", arm.setting, cost.memory_us, "µs")


def main(
    sessions: Annotated[list[int] | None, typer.Option(help="How many, all of them in turn.")] = None,
    rows: Annotated[int, typer.Option(help="Of each round.")] = 4000,
    rounds: Annotated[int, typer.Option(help="The median of them counts.")] = 5,
    results: Annotated[Path, typer.Option(help="Folder for the JSON file.")] = RESULTS,
) -> None:
    """Measure what the engine's own Python costs a row."""
    torch.set_num_threads(1)
    measured = []
    for arm in arms(sessions or [1, 8, 64, 256]):
        measured.append((arm, cost := measure(arm, rows, rounds)))
        print(
            f"{arm.setting}: {cost.row_us:.1f} µs a row, {cost.memory_us:.1f} of it in the memory", flush=True
        )
    detail = {
        "arms": [{**asdict(arm), "work": arm.work.name.lower(), **asdict(cost)} for arm, cost in measured]
    }
    command = f"python -m loadtest.host_time --rows {rows} --rounds {rounds}"
    result = ResultFile.of("host_time", command, list(figures(measured)), detail)
    show(result, result.write(results))


if __name__ == "__main__":
    typer.run(main)
