"""What the engine's benchmark can measure, and the models, engines and sessions for it.

A cell is one setting. A bench builds, once for each, the model without motion modules and the one with them
(they cost time even where nothing is remembered), counts their work and measures the device's bound.
"""

from __future__ import annotations

import math
import time
from collections.abc import Mapping
from dataclasses import dataclass, field

import torch
from rearview.contract.chain import OperatorKind, Span, chain
from rearview.contract.frame import LATENT, PICTURE
from rearview.contract.memories import BankSettings, CacheSettings
from rearview.contract.session import SessionSpec
from rearview.contract.settings import Settings
from rearview.engine.calibration import measure_costs
from rearview.engine.engine import Engine, Order
from rearview.engine.memory.build import CacheOptions, MemoryOptions, build_memories
from rearview.engine.memory.compose import Memories
from rearview.engine.networks.model import DiffusionModel
from rearview.engine.scheduler import CostTable, Scheduler

from loadtest.accelerators import Accelerators
from loadtest.engine_models import ADAPTERS, MAX_STEPS, Size, Work, build, count_work, heighten

__all__ = ["BANKED", "CACHED", "METHODS", "Bench", "Cell", "Networks", "specs", "wait"]

METHODS = ("plain", "streamv2v", "live2diff", "both", "adapters")
"""The last is plain with an adapter set for each session."""
BANKED, CACHED = frozenset({"streamv2v", "both"}), frozenset({"live2diff", "both"})
MAX_BATCH = 16
LARGEST_SHARE = 0.7
"""Of free memory for what is remembered: forwards, graphs and copies take the rest."""
MATMUL_SIDE = {"cuda": 8192, "cpu": 1024}


@dataclass(frozen=True, slots=True)
class Cell:
    """One setting to measure."""

    method: str
    """One of `METHODS`."""
    steps: int
    """0: sessions of 1 to 4 steps and different strengths together."""
    sessions: int
    order: Order = Order.BACK_TO_BACK
    accelerator: str = "eager"
    """One of `accelerators.ACCELERATORS`."""
    storage: str = ""
    """Type of a cache's keys and values. Empty: that of the networks."""
    paced_fps: float = 0.0
    """Frames come on schedule. 0: each when the one before is back."""
    max_batch: int = MAX_BATCH

    @property
    def name(self) -> str:
        """In words; no other cell has it."""
        steps = f"{self.steps} step{'s' if self.steps > 1 else ''}" if self.steps else "mixed steps"
        sessions = f"{self.sessions} session{'s' if self.sessions > 1 else ''}"
        more = {
            self.order.value.replace("_", " "): self.order is not Order.BACK_TO_BACK,
            f"cache in {self.storage}": bool(self.storage),
            f"paced at {self.paced_fps:g} FPS": bool(self.paced_fps),
            f"batches of {self.max_batch}": self.max_batch != MAX_BATCH,
        }
        named = [text for text, is_so in more.items() if is_so]
        return ", ".join([self.method, steps, sessions, *named, self.accelerator])

    @property
    def span(self) -> Span:
        """The whole chain, of as many steps as a session has at most."""
        return Span("fused", chain(self.steps or MAX_STEPS))

    @property
    def banked(self) -> bool:
        return self.method in BANKED

    @property
    def cached(self) -> bool:
        return self.method in CACHED

    @property
    def adapted(self) -> bool:
        return self.method == "adapters"

    @property
    def alone(self) -> Cell:
        """The plain path of a method: one session by itself, eager, one row at a time."""
        return Cell(self.method, self.steps, sessions=1, max_batch=1)


@dataclass(frozen=True, slots=True)
class Networks:
    """A model, the work in it, and ways to run it."""

    model: DiffusionModel
    work: Work
    accelerators: Accelerators


@dataclass
class Bench:
    """One size of model on one device."""

    size: Size
    device: torch.device
    dtype: torch.dtype
    peak_flops: float
    """Of the largest matrix product in this run."""
    _networks: dict[tuple[bool, bool], Networks] = field(default_factory=dict)
    """By whether there are motion modules, and adapter sets."""
    _costs: dict[tuple[str, int, str, int], CostTable] = field(default_factory=dict)
    """By what of a cell they depend on."""

    @classmethod
    def prepare(cls, size: Size, device: torch.device, dtype: torch.dtype) -> Bench:
        """Measure the bound; models come when they are needed."""
        return cls(size, device, dtype, _peak(device, dtype))

    def of(self, cell: Cell) -> Networks:
        """Those that a cell's sessions need."""
        return self.networks(motion=cell.cached, adapters=cell.adapted)

    def networks(self, *, motion: bool = False, adapters: bool = False) -> Networks:
        """Of random weights, whose pictures have contrast."""
        if (motion, adapters) not in self._networks:
            model = build(self.size, self.device, self.dtype, motion=motion, adapters=adapters)
            if not self.size.bundled:
                heighten(model, self.size)
            work = count_work(model, self.size, self.device, self.dtype)
            self._networks[motion, adapters] = Networks(model, work, Accelerators(model))
        return self._networks[motion, adapters]

    def engine(self, cell: Cell) -> Engine:
        """With a slot for each session. The model runs as it was last told to."""
        model, memory = self.of(cell).model, self.memory(cell, cell.sessions)
        return Engine(cell.span, model, memory, Scheduler(self.costs(cell), cell.max_batch), order=cell.order)

    def memory(self, cell: Cell, slots: int) -> Memories:
        """What the sessions of a cell are remembered in."""
        storage = getattr(torch, cell.storage) if cell.storage else None
        options = MemoryOptions(
            num_slots=slots,
            height=self.size.pixels,
            width=self.size.pixels,
            dtype=self.dtype,
            device=self.device,
            bank=BankSettings() if cell.banked else None,
            cache=CacheOptions(storage=storage) if cell.cached else None,
        )
        return build_memories(cell.span, self.of(cell).model.layouts, options)

    def session_bytes(self, cell: Cell) -> int:
        """What one session of a cell remembers."""
        return self.memory(cell, 1).bytes_per_session(specs(cell, self.size)[0])

    def fits(self, cell: Cell) -> bool:
        """Whether the device has room for what the sessions remember."""
        if self.device.type != "cuda":
            return True
        free, _ = torch.cuda.mem_get_info()
        return cell.sessions * self.session_bytes(cell) < LARGEST_SHARE * free

    def flops_per_frame(self, cell: Cell) -> float:
        """The mean over the sessions."""
        work, sessions = self.of(cell).work, specs(cell, self.size)
        total = sum(work.of_frame(each.settings.steps, cell.banked, cell.cached) for each in sessions)
        return total / len(sessions)

    def costs(self, cell: Cell) -> CostTable:
        """Of eager forwards: a cell that runs faster forms the same batches. One row at a time needs none."""
        if cell.max_batch == 1:
            return CostTable()
        key = cell.method, cell.steps, cell.storage, cell.max_batch
        if key not in self._costs:
            networks, spec = self.of(cell), specs(cell, self.size)[0]
            networks.accelerators.use("eager")
            payloads = [self._payload(o.kind, networks.model) for o in cell.span.operators]
            sizes = sorted({1, cell.max_batch})
            self._costs[key] = measure_costs(
                networks.model, self.memory(cell, 1), cell.span, spec, payloads, batch_sizes=sizes
            )
        return self._costs[key]

    def _payload(self, kind: OperatorKind, model: DiffusionModel) -> Mapping[str, torch.Tensor]:
        if kind is OperatorKind.ENCODE:
            return {PICTURE: torch.full((self.size.pixels, self.size.pixels, 3), 128, dtype=torch.uint8)}
        cells, channels = self.size.pixels // 8, model.vae.config.latent_channels
        exact = torch.promote_types(self.dtype, torch.float32)
        return {LATENT: torch.zeros(channels, cells, cells, dtype=exact)}


def specs(cell: Cell, size: Size) -> list[SessionSpec]:
    """The sessions of a cell: prompts and seeds differ, with mixed steps their number and strengths too."""
    return [
        SessionSpec(
            f"s{i}",
            size.pixels,
            size.pixels,
            cell.steps or MAX_STEPS,
            Settings(
                prompt=f"prompt {i}",
                strength=0.6 if cell.steps else 0.4 + 0.1 * (i % 5),
                steps=cell.steps or 1 + i % MAX_STEPS,
                seed=i,
                adapters=ADAPTERS[i % len(ADAPTERS)] if cell.adapted else "",
            ),
            bank=BankSettings() if cell.banked else None,
            cache=CacheSettings() if cell.cached else None,
        )
        for i in range(cell.sessions)
    ]


def wait(device: torch.device) -> None:
    """Until the device has done what it was asked for."""
    if device.type == "cuda":
        torch.cuda.synchronize()


def _peak(device: torch.device, dtype: torch.dtype, repeats: int = 8) -> float:
    """FLOP/s of the largest matrix product, the best of some."""
    side = MATMUL_SIDE.get(device.type, 1024)
    a, b = (torch.randn(side, side, device=device).to(dtype) for _ in range(2))
    best = math.inf
    for _ in range(repeats):
        wait(device)
        begin_s = time.perf_counter()
        a @ b
        wait(device)
        best = min(best, time.perf_counter() - begin_s)
    return 2.0 * side**3 / best
