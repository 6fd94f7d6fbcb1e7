"""What the engine's benchmark prints and stores. Needs no library beyond the engine's own."""

from __future__ import annotations

import json
import os
import shlex
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from loadtest.machine import describe_machine

__all__ = ["device_name", "setting", "store"]


def store(
    path: Path,
    name: str,
    module: str,
    figures: Sequence[Mapping[str, Any]],
    problems: Sequence[str],
    detail: Mapping[str, Any],
) -> None:
    """Store a result of this process's `module` in the format of `loadtest/figures.py`: all, or nothing."""
    content = {
        "name": name,
        "command": f"python -m loadtest.{module} {shlex.join(_without_out(sys.argv[1:]))}".rstrip(),
        "machine": describe_machine(),
        "figures": figures,
        "problems": problems,
        "detail": detail,
    }
    path.parent.mkdir(parents=True, exist_ok=True)
    beside = path.with_name(f".{path.name}.{os.getpid()}")
    beside.write_text(json.dumps(content, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
    beside.replace(path)


def _without_out(arguments: Sequence[str]) -> list[str]:
    """Where the file went says nothing of what was measured."""
    named = [at for at, argument in enumerate(arguments) if argument == "--out"]
    return [argument for at, argument in enumerate(arguments) if at not in named and at - 1 not in named]


def setting(pixels: int, device: torch.device, dtype: torch.dtype) -> dict[str, Any]:
    """What the figures of a result depend on."""
    return {
        "device": device_name(device),
        "dtype": str(dtype).removeprefix("torch."),
        "threads": torch.get_num_threads(),
        "pixels": pixels,
    }


def device_name(device: torch.device) -> str:
    return torch.cuda.get_device_name(device) if device.type == "cuda" else "CPU"
