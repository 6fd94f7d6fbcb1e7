"""What forwards of a device cost, as measured: the one thing that the simulation does not compute.

Needs no networks, so that a wrong file is refused before torch is loaded.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rearview.contract.cost import FrameCost
from rearview.errors import ConfigError

__all__ = ["H200", "DeviceCost", "read_costs"]

TIMED_PIXELS = 512 * 512


@dataclass(frozen=True)
class DeviceCost:
    """Seconds of one forward by the number of rows in it, of pictures of `pixels`. Of other sizes a forward
    counts by its pixels, which is a little less than attention takes of larger ones.
    """

    name: str
    pixels: int
    once_s: Mapping[int, float]
    """Encoding and decoding together."""
    step_s: Mapping[int, float]
    """One denoising step."""

    def frame(self, steps: int) -> FrameCost:
        """What placement counts with: forwards as full as pays best."""
        step_s = _best(self.step_s)
        return FrameCost(self.pixels, _best(self.once_s), step_s, step_s, tuple(range(steps)))


H200 = DeviceCost(
    "NVIDIA H200, sd15, float16, compiled graphs",
    TIMED_PIXELS,
    {1: 0.003784, 8: 0.014366, 16: 0.026259},
    {1: 0.005047, 8: 0.019159, 16: 0.035020},
)
"""Of loadtest/results/engine_h200.json; a test keeps them the same."""


def read_costs(path: Path) -> DeviceCost:
    """A cost table from a JSON file: a `DeviceCost` {name, pixels, once_s, step_s}, a `FrameCost` as a
    replica describes it (no gain from batches is known of it then), or a result of `loadtest.engine_bench`.
    Raises ConfigError, with a sentence.
    """
    try:
        said = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise ConfigError(f"{path}: {error.strerror}") from None
    except ValueError as error:
        raise ConfigError(f"{path} is not JSON: {error}") from None
    if not isinstance(said, dict):
        raise ConfigError(f"{path}: a cost table is a JSON object")
    try:
        found = _of_result(said) if "detail" in said else _of_table(said, path.stem)
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        text = (
            f"{path} has no costs: it needs pixels, once_s and step_s, or cells of engine_bench ({error!r})"
        )
        raise ConfigError(text) from None
    if found.pixels <= 0 or not all(_rises(times) for times in (found.once_s, found.step_s)):
        raise ConfigError(f"{path}: pixels and rows must be at least 1, and seconds above 0")
    return found


def _of_table(said: Mapping[str, Any], name: str) -> DeviceCost:
    def times(value: Any) -> Mapping[int, float]:
        if isinstance(value, (int, float)):
            return {1: float(value)}
        return {int(rows): float(seconds) for rows, seconds in value.items()}

    return DeviceCost(
        str(said.get("name", name)), int(said["pixels"]), times(said["once_s"]), times(said["step_s"])
    )


def _of_result(said: Mapping[str, Any]) -> DeviceCost:
    """Of cells with every place of a batch taken. Where cells of one batch size differ in steps the time is
    divided between steps and the rest; cells of other sizes are divided in the same proportion.
    """
    detail = said["detail"]
    cells = [
        cell
        for cell in detail["rows"]
        if cell.get("kind") == "cell" and cell["method"] == "plain" and not cell["paced_fps"] and cell["fps"]
    ]
    fastest = max(cells, key=lambda cell: float(cell["fps"]))["accelerator"]
    batch_s: dict[int, dict[int, float]] = {}
    for cell in cells:
        if cell["accelerator"] == fastest:
            batch_s.setdefault(cell["sessions"], {})[cell["steps"]] = cell["sessions"] / cell["fps"]
    rest = _rest_by_step(list(batch_s.values()))
    step_s = {
        rows: max(by_steps.items())[1] / (max(by_steps) + rest) for rows, by_steps in sorted(batch_s.items())
    }
    name = f"{detail['device']}, {detail['size']}, {detail['dtype']}, {fastest}"
    once_s = {rows: seconds * rest for rows, seconds in step_s.items()}
    return DeviceCost(name, detail["pixels"] ** 2, once_s, step_s)


def _rest_by_step(cells: Sequence[Mapping[int, float]]) -> float:
    """Encoding and decoding, in denoising steps."""
    for by_steps in cells:
        few, many = min(by_steps), max(by_steps)
        if few < many:
            step_s = (by_steps[many] - by_steps[few]) / (many - few)
            return max(0.0, by_steps[few] / step_s - few)
    raise ValueError("no two cells of one number of sessions differ in steps")


def _best(times: Mapping[int, float]) -> float:
    """Seconds of one row."""
    return min(seconds / rows for rows, seconds in times.items())


def _rises(times: Mapping[int, float]) -> bool:
    return bool(times) and all(rows >= 1 and seconds > 0 for rows, seconds in times.items())
