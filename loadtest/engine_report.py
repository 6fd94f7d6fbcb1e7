"""What the engine's benchmark prints and stores. Needs no library beyond the engine's own."""

from __future__ import annotations

import json
import os
import shlex
import sys
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from loadtest.machine import describe_machine

if TYPE_CHECKING:
    from loadtest.engine_bench import Bench, Cell, Measured

__all__ = ["device_name", "header", "line", "setting", "store", "write"]


def header(bench: Bench) -> str:
    """What is measured, and the table's heading."""
    work = bench.work
    return (
        f"{bench.size.name}, {bench.size.pixels}², {device_name(bench.device)}, {bench.dtype}, "
        f"{torch.get_num_threads()} threads, load {os.getloadavg()[0]:.1f}\n"
        f"GFLOP: UNet {work.unet / 1e9:.3g}, with a bank {(work.unet + work.bank) / 1e9:.3g}, "
        f"VAE {work.encode / 1e9:.3g} + {work.decode / 1e9:.3g}; "
        f"bound {bench.peak_flops / 1e12:.3g} TFLOP/s\n"
        f"{'memory':7}{'steps':>6}{'sessions':>9}  {'order':13}{'FPS':>8}{'p50 ms':>9}{'p95 ms':>9}"
        f"{'rows':>6}{'MiB':>7}{'bound':>7}"
    )


def line(cell: Cell, m: Measured) -> str:
    """One line of the table."""
    return (
        f"{cell.memory:7}{cell.steps:6}{cell.sessions:9}  {cell.order.value:13}{m.fps:8.2f}"
        f"{m.latency_p50_ms:9.1f}{m.latency_p95_ms:9.1f}{m.rows_per_forward:6.1f}{m.memory_mib:7.0f}"
        f"{m.share_of_bound:7.1%}"
    )


def write(
    path: Path,
    bench: Bench,
    table: Sequence[Mapping[str, Any]],
    checks: Sequence[Mapping[str, Any]],
    problems: Sequence[str],
) -> None:
    """Store the result of `engine_bench`."""
    detail = {
        **setting(bench.size.pixels, bench.device, bench.dtype),
        "peak_tflops": bench.peak_flops / 1e12,
        "tflop": {name: value / 1e12 for name, value in asdict(bench.work).items()},
        "cells": table,
    }
    store(path, f"engine_{bench.size.name}", "engine_bench", checks, problems, detail)


def store(
    path: Path,
    name: str,
    module: str,
    figures: Sequence[Mapping[str, Any]],
    problems: Sequence[str],
    detail: Mapping[str, Any],
) -> None:
    """Store a result of this process's `module` in the format of `loadtest/figures.py`."""
    content = {
        "name": name,
        "command": f"python -m loadtest.{module} {shlex.join(sys.argv[1:])}",
        "machine": describe_machine(),
        "figures": figures,
        "problems": problems,
        "detail": detail,
    }
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(content, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")


def setting(pixels: int, device: torch.device, dtype: torch.dtype) -> dict[str, Any]:
    """What the figures of a result depend on."""
    return {
        "device": device_name(device),
        "dtype": str(dtype).removeprefix("torch."),
        "threads": torch.get_num_threads(),
        "pixels": pixels,
    }


def device_name(device: torch.device) -> str:
    return torch.cuda.getdevice_name(device) if device.type == "cuda" else "CPU"
