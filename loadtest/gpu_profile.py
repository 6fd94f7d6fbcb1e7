"""Where the time of a GPU goes in the engine as it is, and what graphs and compiling would give:

    PYTHONPATH=services python -m loadtest.gpu_profile --device cuda --size sd15

Needs torch, diffusers and transformers only, and no weights. At most five minutes; what fails is written down
and the rest goes on. Asks for

1. the ceilings: the speed of a copy and of a large matrix product, which bound everything else;
2. the bare UNet, by batch: eager, replayed from a CUDA graph, compiled, and compiled in a graph;
3. diffusers' own image-to-image loop (`LCMScheduler`, TAESD), from host bytes to host bytes;
4. the engine by sessions and memory, from host bytes to host bytes, and a profile of it: how long the device
   is busy, kernels and waits a forward, and what is dear.

Its figures are facts about one card in one run: only ratios among them carry over.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import time
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import asdict
from functools import partial
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from rearview.engine.acceleration.graphs import CudaRecorder
from rearview.engine.devices import pick_device, pick_dtype
from torch import Tensor
from torch.profiler import ProfilerActivity, profile

from loadtest.engine_cells import Bench, Cell, wait
from loadtest.engine_checks import Reference
from loadtest.engine_loop import Frames
from loadtest.engine_measure import measure, opened
from loadtest.engine_models import SIZES
from loadtest.engine_report import device_name, store
from loadtest.parts import Part
from loadtest.peers import DIFFUSERS, Peer, diffusers_loop, measure_peer

__all__ = ["main"]

RESULTS = Path(__file__).resolve().parent / "results"
BATCHES = (1, 4, 8, 16)
CELLS = tuple((method, sessions) for method in ("plain", "streamv2v") for sessions in (1, 8))
STEPS = 4
WARM_UP = 3
DEAREST = 25
"""Operators named in a profile."""
NAME_LENGTH = 200
SYNCS = (
    "cudaStreamSynchronize",
    "cudaDeviceSynchronize",
    "cudaMemcpyAsync",
    "cudaLaunchKernel",
    "aten::item",
)


def median_ms(run: Callable[[], object], device: torch.device, repeats: int) -> float:
    """Of runs with a wait before and after each."""
    for _ in range(WARM_UP):
        run()
    taken = []
    for _ in range(repeats):
        wait(device)
        begin_s = time.perf_counter()
        run()
        wait(device)
        taken.append(1e3 * (time.perf_counter() - begin_s))
    return round(statistics.median(taken), 3)


def ceilings(device: torch.device, dtype: torch.dtype, repeats: int, figures: dict[str, Any]) -> None:
    """TB/s of a device-to-device copy, bytes read and written; TFLOP/s of an 8192-cube on random data."""
    side, count = (8192, 2**30) if device.type == "cuda" else (512, 2**24)
    source = torch.randn(count, device=device, dtype=dtype)
    target = torch.empty_like(source)
    ms = median_ms(lambda: target.copy_(source), device, repeats)
    figures["copy_tb_s"] = round(2 * source.nbytes / ms / 1e9, 3)
    a, b = (torch.randn(side, side, device=device).to(dtype) for _ in range(2))
    figures["matmul_tflop_s"] = round(2 * side**3 / median_ms(lambda: a @ b, device, repeats) / 1e9, 1)


# --- the bare UNet


@torch.inference_mode()
def bare_unet(bench: Bench, repeats: int, compiled: Sequence[int], figures: dict[str, Any]) -> None:
    """Milliseconds by batch. `compiled`: the batches that are also compiled, by Inductor's defaults."""
    networks = bench.networks()
    networks.accelerators.use("eager")
    denoiser: Any = networks.model.denoisers[""]
    unet, device, cells = denoiser.unet, bench.device, bench.size.pixels // 8
    recorder = CudaRecorder()
    for batch in BATCHES:
        latent = torch.randn(batch, unet.config.in_channels, cells, cells, device=device).to(
            bench.dtype, memory_format=torch.channels_last
        )
        steps = torch.full((batch,), 499, device=device)
        embeds = denoiser.conditioning.embed("work").expand(batch, -1, -1).contiguous()

        def call(
            network: Any, latent: Tensor = latent, steps: Tensor = steps, embeds: Tensor = embeds
        ) -> Tensor:
            output: Tensor = network(latent, steps, encoder_hidden_states=embeds, return_dict=False)[0]
            return output

        found = figures[f"batch_{batch}"] = {"eager_ms": median_ms(partial(call, unet), device, repeats)}
        found["bound_ms"] = round(1e3 * batch * networks.work.unet / bench.peak_flops, 3)
        if device.type == "cuda":
            found["graph_ms"] = median_ms(recorder.record(partial(call, unet))[0], device, repeats)
        if batch not in compiled:
            continue
        begin_s = time.perf_counter()
        network = torch.compile(unet, dynamic=False)
        apart = (call(network).float() - call(unet).float()).square().mean().sqrt()
        found["compile_s"] = round(time.perf_counter() - begin_s, 1)
        found["compiled_error_rms"] = round(float(apart / call(unet).float().square().mean().sqrt()), 6)
        found["compiled_ms"] = median_ms(partial(call, network), device, repeats)
        if device.type == "cuda":
            found["compiled_graph_ms"] = median_ms(
                recorder.record(partial(call, network))[0], device, repeats
            )


# --- diffusers' own loop


def diffusers(bench: Bench, repeats: int, figures: dict[str, Any]) -> None:
    """Of a frame by itself, `STEPS` of LCM at strength 0.5, from (H, W, 3) uint8 on the host and back."""
    peer, frames = Peer(DIFFUSERS, STEPS, 1, "eager"), Frames(bench.size.pixels)
    pictures = partial(frames.bytes_of, "s0")
    figures |= measure_peer(bench, peer, diffusers_loop(bench, peer), pictures, repeats)
    figures["frame_ms"] = figures["latency_p50_ms"]


# --- the engine


def engine(bench: Bench, method: str, sessions: int, rounds: int, figures: dict[str, Any]) -> None:
    """FPS and latency of `STEPS` steps, then the same once more under the profiler."""
    cell, frames = Cell(method, STEPS, sessions), Frames(bench.size.pixels)
    found = measure(bench, cell, frames, Reference(bench, frames), rounds).as_row()
    figures |= {name: round(value, 4) for name, value in found.items() if isinstance(value, float)}
    figures |= {"frames": found["frames"], "check": found["check"]}
    activities = [ProfilerActivity.CPU]
    activities += [ProfilerActivity.CUDA] if bench.device.type == "cuda" else []
    loop = opened(bench, cell, frames)
    loop.answers(WARM_UP)
    loop.batches.clear()
    begin_s = time.perf_counter()
    with profile(activities=activities) as profiler:
        answers = loop.answers(2)
        seconds = time.perf_counter() - begin_s
    forwards = len(loop.batches)
    loop.end()
    averages = profiler.key_averages()
    device_us = sum(_own_device_us(event) for event in averages)
    counts = {event.key: event.count for event in averages}
    figures |= {
        "profiled_frames": len(answers),
        "device_busy_share_profiled": round(device_us / 1e6 / seconds, 4),
        "device_ms_per_frame": round(device_us / 1e3 / len(answers), 3),
        "per_denoise_forward": {name: round(counts.get(name, 0) / forwards, 1) for name in SYNCS},
        "dearest_on_device_us_per_frame": _dearest(averages, _own_device_us, len(answers)),
        "dearest_on_host_us_per_frame": _dearest(
            averages, lambda event: float(event.self_cpu_time_total), len(answers)
        ),
    }


def _own_device_us(event: Any) -> float:
    """Kernels and copies only: operators would count them twice."""
    on_device = "CUDA" in str(event.device_type)
    return float(event.self_device_time_total) if on_device else 0.0


def _dearest(events: Any, cost: Callable[[Any], float], frames: int) -> dict[str, float]:
    """By the beginning of the name, which for kernels of one template is all that tells them apart."""
    costs: Counter[str] = Counter()
    for event in events:
        costs[event.key[:NAME_LENGTH]] += cost(event)
    return {name: round(us / frames, 1) for name, us in costs.most_common(DEAREST) if us > 0}


# --- all of it


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure, tell on stderr, write the JSON after every part. Returns the exit code."""
    options = _options(arguments)
    device = pick_device(options.device)
    dtype = pick_dtype("auto" if device.type == "cuda" else "float32", device)
    torch.set_num_threads(options.threads)
    size, repeats = SIZES["smoke" if options.size == "tiny" else options.size], options.repeats
    bench = Bench.prepare(size, device, dtype)
    parts: list[Part] = []
    questions: dict[str, Callable[[dict[str, Any]], None]] = {
        "ceilings": partial(ceilings, device, dtype, repeats),
        **{f"engine {method} {n}": partial(engine, bench, method, n, options.frames) for method, n in CELLS},
        "diffusers": partial(diffusers, bench, repeats),
        "unet": partial(bare_unet, bench, repeats, options.compile),
    }
    out = options.out or RESULTS / f"gpu_profile-{device.type}.json"
    for name, ask in questions.items():
        part = Part(name)
        part.run(ask, device)
        parts.append(part)
        brief = {key: value for key, value in part.figures.items() if not key.startswith("dearest")}
        print(f"{part.seconds:6.1f} s {name}: {brief} {part.failure or ''}", file=sys.stderr, flush=True)
        _write(out, bench, parts)
    return 1 if any(part.failure for part in parts) else 0


def _write(out: Path, bench: Bench, parts: Sequence[Part]) -> None:
    where = f"{bench.size.name}, {bench.size.pixels}², {bench.dtype}, {device_name(bench.device)}"
    figures = [
        {
            "what": f"{part.name.replace('engine', f'engine, {STEPS} steps,')} session(s), eager",
            "setting": where.replace("torch.", ""),
            "value": part.figures["fps"],
            "unit": "FPS",
            "target": None,
            "at_most": False,
        }
        for part in parts
        if "fps" in part.figures and part.name.startswith("engine")
    ]
    detail = {
        "torch": torch.__version__,
        "cuda": torch.version.cuda,
        "diffusers": version("diffusers"),
        "device": device_name(bench.device),
        "tflop": {name: value / 1e12 for name, value in asdict(bench.networks().work).items()},
        "parts": [asdict(part) for part in parts],
    }
    problems = [f"{part.name}: {part.failure.splitlines()[-1]}" for part in parts if part.failure]
    store(out, out.stem, "gpu_profile", figures, problems, detail)


def _options(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m loadtest.gpu_profile",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--device", default="auto", help="auto: CUDA if there is any, else the CPU")
    parser.add_argument("--size", choices=("sd15", "tiny"), default="sd15")
    parser.add_argument("--repeats", type=int, default=20, help="of what is timed by itself")
    parser.add_argument("--frames", type=int, default=6, help="per session, of the engine")
    parser.add_argument("--threads", type=int, default=1, help="of torch, on the CPU")
    parser.add_argument("--compile", type=int, nargs="*", default=(1, 8), help="batches to compile too")
    parser.add_argument("--out", type=Path, help="default: loadtest/results/gpu_profile-<device>.json")
    return parser.parse_args(arguments)


if __name__ == "__main__":
    sys.exit(main())
