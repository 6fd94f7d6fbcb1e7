"""Does the engine work on this GPU, and how fast is one row? At most four minutes, one command:

    PYTHONPATH=services python -m loadtest.gpu_check --device cuda --size sd15

Needs torch, diffusers and transformers only, and no weights. Two questions for each method (per frame,
StreamV2V, Live2Diff):

1. Are the pictures those of the CPU? A small random model with feature bank and motion modules translates
   a few frames on both, through the product's `Engine`. TF32 is off. In float64 values may differ by one
   level of 255 where rounding decides, in float32 by two, and only few of them.
2. How long does one row take, and how much memory? One denoising step of one session, gather, forward and
   scatter, eager, with the past full; in float16 on a GPU, with random weights.

On a GPU also: are pictures of captured forwards the same to the bit, and how long does a replayed row take?
With `--compile` of forwards that Inductor has compiled, too, which takes a minute or two more.

What fails is written down and the rest goes on. Exit code 1 if anything failed.
"""

from __future__ import annotations

import argparse
import math
import resource
import statistics
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from functools import cache, partial
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from rearview.contract.chain import Operator, OperatorKind, Span, chain
from rearview.contract.frame import LATENT, PICTURE
from rearview.contract.memories import BankSettings, CacheSettings
from rearview.contract.session import SessionSpec
from rearview.contract.settings import Settings
from rearview.engine.devices import pick_device
from rearview.engine.engine import Engine
from rearview.engine.memory.build import CacheOptions, MemoryOptions, build_memories
from rearview.engine.memory.cache.window import CacheWindow
from rearview.engine.memory.compose import Memories
from rearview.engine.networks.model import DiffusionModel
from rearview.engine.player import Player as EnginePlayer
from rearview.engine.player import planes_of
from rearview.engine.rows import StepResult
from rearview.engine.scheduler import CostTable, Scheduler
from torch import Tensor

from loadtest.accelerators import accelerate
from loadtest.engine_models import SIZES, Size, build, sharpen
from loadtest.engine_report import device_name, store
from loadtest.parts import Part

__all__ = ["METHODS", "Tolerance", "main"]

CPU = torch.device("cpu")
RESULTS = Path(__file__).resolve().parent / "results"
FRAMES = 9
"""Of the compared clip: a window, a turn of the ring and some more, and several writes of the bank."""
STEPS = 2
SMALL_WINDOW = CacheWindow(sink_frames=3, ring_frames=3)
MAX_REPEATS_S = 12.0
"""A row is timed no longer, however often it has run."""
WARM_UP = 3
"""Rows before those that count: kernels are chosen and loaded in them."""


@dataclass(frozen=True, slots=True)
class Tolerance:
    """How far equal pictures may be apart."""

    levels: int
    """Of 255, anywhere."""
    share: float
    """Of all values that may differ at all."""


TOLERANCES = {torch.float32: Tolerance(2, 0.02), torch.float64: Tolerance(1, 0.001)}
MIN_CONTRAST, MIN_CHANGE = 1.0, 0.01
"""Levels: deviation of the pictures, and mean distance of a method with memory from the one without."""
METHODS: Mapping[str, tuple[BankSettings | None, CacheSettings | None]] = {
    "per-frame": (None, None),
    "streamv2v": (BankSettings(interval=2), None),
    "live2diff": (None, CacheSettings()),
}


class Unequal(Exception):
    """Pictures differ by more than they may, or by less than they must."""


# --- engines


@dataclass(frozen=True, slots=True)
class Run:
    """Where a model of which size computes in what."""

    size: Size
    device: torch.device
    dtype: torch.dtype
    accelerator: str = "eager"


def memory_of(
    run: Run, model: DiffusionModel, spec: SessionSpec, span: Span, window: CacheWindow
) -> Memories:
    """What one session of `spec` remembers in `span`."""
    options = MemoryOptions(
        num_slots=1,
        height=spec.height,
        width=spec.width,
        dtype=run.dtype,
        device=run.device,
        bank=spec.bank,
        cache=None if spec.cache is None else CacheOptions(window),
    )
    return build_memories(span, model.layouts, options)


def spec_of(method: str, size: Size, steps: int) -> SessionSpec:
    """One session of a method."""
    bank, past = METHODS[method]
    settings = Settings("a harbour at night", strength=0.6, steps=steps, seed=7)
    return SessionSpec("check", size.pixels, size.pixels, steps, settings, bank=bank, cache=past)


class Player:
    """One session in one engine: planes in, planes out."""

    def __init__(self, run: Run, model: DiffusionModel, method: str, span: Span, window: CacheWindow) -> None:
        spec = spec_of(method, run.size, sum(op.kind is OperatorKind.DENOISE for op in span.operators))
        memory = memory_of(run, model, spec, span, window)
        self._player = EnginePlayer(Engine(span, model, memory, Scheduler(CostTable(), 1)), watch=_check)
        self._player.open(spec)
        self._sent = 0

    def play(self, planes: Mapping[str, Tensor]) -> list[Mapping[str, Tensor]]:
        """Send one frame; whatever has left when the engine is idle again, in order."""
        self._player.admit("check", self._sent, planes)
        self._sent += 1
        return [planes_of(frame) for frame in self._player.left()]


def _check(engine: Engine, result: StepResult) -> None:
    if result.batch is not None and result.batch.failed:
        raise RuntimeError("a forward has failed: the log says why")


# --- the pictures


@cache
def pictures(run: Run, method: str) -> Tensor:
    """(FRAMES, H, W, 3) uint8 of a clip, weights drawn on the CPU wherever they are used."""
    model = build(run.size, run.device, run.dtype, motion=True, drawn_on=CPU)
    sharpen(model)
    accelerate(model, run.accelerator)
    player = Player(run, model, method, Span("fused", chain(STEPS)), SMALL_WINDOW)
    out = [planes for frame in clip(run.size) for planes in player.play({PICTURE: frame})]
    assert len(out) == FRAMES, f"{len(out)} of {FRAMES} frames came back"
    return torch.stack([planes[PICTURE].cpu() for planes in out])


def clip(size: Size) -> list[Tensor]:
    """Coloured waves that move a little from frame to frame: (H, W, 3) uint8 each."""
    y, x = torch.meshgrid(torch.arange(size.pixels), torch.arange(size.pixels), indexing="ij")
    waves = [(0.11, 0.05), (0.03, 0.13), (0.07, -0.09)]
    return [
        torch.stack([127.5 + 120 * torch.sin(a * x + b * y + 0.15 * n) for a, b in waves], dim=-1).to(
            torch.uint8
        )
        for n in range(FRAMES)
    ]


def compare_pictures(size: Size, device: torch.device, method: str, figures: dict[str, Any]) -> None:
    """Fill figures; raises Unequal. Also compares the CPU's float32 with its float64: what rounding does."""
    ours = {dtype: pictures(Run(size, device, dtype), method) for dtype in TOLERANCES}
    theirs = {dtype: pictures(Run(size, CPU, dtype), method) for dtype in TOLERANCES}
    plain, exact = pictures(Run(size, CPU, torch.float64), "per-frame"), theirs[torch.float64]
    contrast, change = float(exact.float().std()), float((exact.float() - plain.float()).abs().mean())
    figures |= {"contrast_levels": round(contrast, 2), "levels_from_per_frame": round(change, 3)}
    problems = []
    for dtype, tolerance in TOLERANCES.items():
        problems += _difference(_name(dtype), ours[dtype], theirs[dtype], tolerance, figures)
    problems += _difference("rounding", theirs[torch.float32], exact, TOLERANCES[torch.float32], figures)
    if contrast < MIN_CONTRAST or (method != "per-frame" and change < MIN_CHANGE):
        problems.append("the pictures are flat, or the memory changes nothing: equal means nothing")
    if problems:
        raise Unequal("; ".join(problems))


def compare_captured(size: Size, device: torch.device, method: str, figures: dict[str, Any]) -> None:
    """Replayed graphs run the kernels that eager forwards run: raises Unequal if a single value differs."""
    run = Run(size, device, torch.float32)
    captured = pictures(replace(run, accelerator="graphs"), method)
    if problems := _difference("graphs", captured, pictures(run, method), Tolerance(0, 0.0), figures):
        raise Unequal("; ".join(problems))


def _difference(
    name: str, ours: Tensor, theirs: Tensor, tolerance: Tolerance, figures: dict[str, Any]
) -> list[str]:
    """Put the difference of two clips into figures; a text if it is too large."""
    apart = (ours.int() - theirs.int()).abs()
    levels, share = int(apart.max()), float((apart > 0).float().mean())
    figures[name] = {"max_levels": levels, "share_of_values": round(share, 6), "tolerance": asdict(tolerance)}
    if levels <= tolerance.levels and share <= tolerance.share:
        return []
    return [f"{name}: up to {levels} levels apart, in {share:.2%} of the values"]


# --- one row


@cache
def large_model(run: Run) -> DiffusionModel:
    """The model whose rows are timed."""
    return build(run.size, run.device, run.dtype, motion=True)


def time_row(run: Run, repeats: int, method: str, figures: dict[str, Any]) -> None:
    """One denoising row with a full past: milliseconds, and memory at most."""
    size, device, window = run.size, run.device, CacheWindow()
    model = large_model(replace(run, accelerator="eager"))
    counts = accelerate(model, run.accelerator)
    figures["weights_mib"] = _allocated_mib(device)
    player = Player(run, model, method, Span("row", (Operator(OperatorKind.DENOISE),)), window)
    latent = {LATENT: torch.randn(4, size.pixels // 8, size.pixels // 8, generator=_generator())}
    for _ in range(window.frames + WARM_UP if method == "live2diff" else WARM_UP):
        player.play(latent)
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats()
    taken_ms: list[float] = []
    begin_s = time.perf_counter()
    while len(taken_ms) < repeats and time.perf_counter() - begin_s < MAX_REPEATS_S:
        _wait(device)
        started_s = time.perf_counter()
        player.play(latent)
        _wait(device)
        taken_ms.append(1e3 * (time.perf_counter() - started_s))
    figures |= {
        "accelerator": run.accelerator,
        "accelerated_calls": sum(each.accelerated for each in counts),
        "eager_calls": sum(each.eager for each in counts),
        "ms": round(statistics.median(taken_ms), 3),
        "ms_min": round(min(taken_ms), 3),
        "ms_max": round(max(taken_ms), 3),
        "repeats": len(taken_ms),
        "peak_mib": _peak_mib(device),
        "dtype": _name(run.dtype),
        "pixels": size.pixels,
    }
    assert math.isfinite(float(player.play(latent)[0][LATENT].float().sum())), "the latent is not finite"


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize()


def _allocated_mib(device: torch.device) -> float | None:
    """None on a CPU, which cannot tell."""
    return round(torch.cuda.memory_allocated() / 2**20, 1) if device.type == "cuda" else None


def _peak_mib(device: torch.device) -> float:
    """Allocated on the GPU at most since the warm-up; on a CPU resident in the process at most, ever."""
    if device.type == "cuda":
        return round(torch.cuda.max_memory_allocated() / 2**20, 1)
    return round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**10, 1)


def _generator() -> torch.Generator:
    return torch.Generator().manual_seed(11)


def _name(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")


# --- all of it


def check(
    size: Size, device: torch.device, repeats: int, compiles: bool, say: Callable[[str], None]
) -> list[Part]:
    """Ask every question; `say` hears each answer. `compiles`: rows by Inductor, too."""
    run = Run(size, device, torch.float16 if device.type == "cuda" else torch.float32)
    questions: dict[str, Callable[[str, dict[str, Any]], None]] = {
        "pictures": partial(compare_pictures, SIZES["smoke"], device),
        "row": partial(time_row, run, repeats),
    }
    if device.type == "cuda":
        questions["captured pictures"] = partial(compare_captured, SIZES["smoke"], device)
        faster = ("graphs", "compiled graphs") if compiles else ("graphs",)
        for each in faster:
            questions[f"row, {each},"] = partial(time_row, replace(run, accelerator=each), repeats)
    elif compiles:
        questions["row, compiled,"] = partial(time_row, replace(run, accelerator="compiled"), repeats)
    parts = []
    for kind, ask in questions.items():
        for method in METHODS:
            part = Part(f"{kind} {method}")
            part.run(partial(ask, method), device)
            say(f"{part.name}: {'ok' if part.passed else 'FAILED'}, {part.seconds:.1f} s, {part.figures}")
            if part.failure:
                say(part.failure)
            parts.append(part)
    return parts


def main(arguments: Sequence[str] | None = None) -> int:
    """Check, tell on stderr, write the JSON. Returns the exit code."""
    options = _options(arguments)
    # One that is named is tried, so that the result says in each part how it fails.
    device = pick_device("auto") if options.device == "auto" else torch.device(options.device)
    torch.backends.cuda.matmul.allow_tf32 = False
    torch.backends.cudnn.allow_tf32 = False
    torch.set_num_threads(options.threads)
    begin_s = time.perf_counter()
    size = SIZES["smoke" if options.size == "tiny" else options.size]
    parts = check(size, device, options.repeats, options.compile, _say)
    name = _device_name(device)
    figures = [
        {
            "what": f"{part.name}, {unit_of}",
            "setting": f"{options.size}, {part.figures['pixels']}², {part.figures['dtype']}, "
            f"{part.figures['accelerator']}, {name}",
            "value": part.figures[key],
            "unit": unit,
            "target": None,
            "at_most": False,
        }
        for part in parts
        for key, unit_of, unit in (("ms", "median", "ms"), ("peak_mib", "peak memory", "MiB"))
        if key in part.figures
    ]
    problems = [f"{part.name}: {part.failure.splitlines()[-1]}" for part in parts if part.failure]
    detail = {
        "device": name,
        "size": options.size,
        "torch": torch.__version__,
        "cuda": torch.version.cuda,
        "diffusers": version("diffusers"),
        "transformers": version("transformers"),
        "tf32": False,
        "seconds": round(time.perf_counter() - begin_s, 1),
        "parts": [asdict(part) for part in parts],
    }
    out = options.out or RESULTS / f"gpu_check-{device.type}.json"
    store(out, out.stem, "gpu_check", figures, problems, detail)
    _say(f"{len(parts) - len(problems)} of {len(parts)} parts passed in {detail['seconds']} s; wrote {out}")
    return 1 if problems else 0


def _device_name(device: torch.device) -> str:
    """Also of a device that is not there."""
    try:
        return device_name(device)
    except (AssertionError, RuntimeError) as error:
        return f"{device}: {error}".splitlines()[0]


def _say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


def _options(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m loadtest.gpu_check",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--device", default="auto", help="auto: CUDA if there is any, else the CPU")
    parser.add_argument("--size", choices=("sd15", "tiny"), default="sd15", help="of the model that is timed")
    parser.add_argument("--repeats", type=int, default=30, help="of a timed row, for 12 s at most")
    parser.add_argument("--threads", type=int, default=1, help="of torch, on the CPU")
    parser.add_argument("--compile", action="store_true", help="also time rows that Inductor has compiled")
    parser.add_argument("--out", type=Path, help="default: loadtest/results/gpu_check-<device>.json")
    return parser.parse_args(arguments)


if __name__ == "__main__":
    sys.exit(main())
