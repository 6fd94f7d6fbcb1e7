"""A run on this machine, as a small file that its user can send: does it work, is it right, how fast.

It says nothing of who or where: no names of users, hosts or folders.
"""

from __future__ import annotations

import json
import platform
import statistics
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rearview.machine import Machine, this_machine

if TYPE_CHECKING:
    import torch

    from rearview.cli.checks import Check
    from rearview.client.answers import Image
    from rearview.engine.devices import Seen

__all__ = ["Recording", "Way", "record"]

FRAMES = 12
"""More than a temporal cache's first window, of 8."""
SIZE = 256
PROMPT = "oil painting"
TELLING_FLAGS = {"avx2", "avx512f", "avx512_bf16", "amx_bf16", "asimd", "bf16"}


@dataclass(frozen=True)
class Way:
    """What one way of translating gave."""

    name: str
    frame_ms: float | None = None
    """Median of the frames after the first ones."""
    mean_difference: float | None = None
    """From the pictures of the CPU in float32, levels of 255."""
    worst_difference: int | None = None
    error: str = ""
    """Why it gave nothing."""


@dataclass(frozen=True)
class Recording:
    """What `rearview doctor --record` writes."""

    machine: Machine
    seen: Sequence[str]
    device: str
    device_name: str
    dtype: str
    torch: str
    checks: Mapping[str, str]
    """Name to verdict."""
    ways: Sequence[Way]

    @property
    def works(self) -> bool:
        """Whether every way gave pictures."""
        return all(not way.error for way in self.ways)

    def write(self, path: Path) -> None:
        """As JSON. Raises OSError."""
        machine = asdict(self.machine) | {"system": self.machine.system.value}
        machine["cpu_flags"] = sorted(TELLING_FLAGS & self.machine.cpu_flags)
        content: dict[str, Any] = {
            "format": "rearview-run",
            "version": 1,
            "date": datetime.now(UTC).date().isoformat(),
            "rearview": version("rearview"),
            "python": platform.python_version(),
            **asdict(self),
            "machine": machine,
        }
        path.write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")


def record(checks: Sequence[Check], say: Callable[[str], None]) -> Recording:
    """Translate some frames of the bundled clip with the bundled model, on the device that `auto` takes."""
    import torch

    from rearview.engine.devices import choose_device, choose_dtype, device_name, see

    seen: Seen = see()
    device = choose_device("auto", seen)
    dtype = choose_dtype("auto", device.type, seen)
    say(f"translating {FRAMES} frames in each way on {device}, and on the CPU to compare")
    return Recording(
        machine=this_machine(),
        seen=seen.devices,
        device=device.type,
        device_name=device_name(device),
        dtype=str(dtype).removeprefix("torch."),
        torch=torch.__version__,
        checks={check.name: check.verdict.value for check in checks},
        ways=list(_ways(device, dtype)),
    )


def _ways(device: torch.device, dtype: torch.dtype) -> list[Way]:
    import torch

    expected = {name: pictures for name, pictures, _ in _translated(torch.device("cpu"), torch.float32)}
    found = {}
    error = ""
    try:
        for name, pictures, latencies_s in _translated(device, dtype):
            found[name] = _way(name, pictures, latencies_s, expected[name])
    except Exception as problem:  # Whatever it is, it is the finding.
        first = (str(problem).splitlines() or [""])[0]
        error = f"{type(problem).__name__}: {first}"[:300]
    return [found.get(name, Way(name, error=error)) for name in expected]


def _way(
    name: str, pictures: Sequence[Image], latencies_s: Sequence[float], expected: Sequence[Image]
) -> Way:
    import numpy as np

    gaps = np.abs(np.stack(pictures).astype(np.int16) - np.stack(expected))
    frame_ms = 1e3 * statistics.median(latencies_s[-FRAMES // 4 :])
    return Way(name, round(frame_ms, 2), round(float(gaps.mean()), 3), int(gaps.max()))


def _translated(device: torch.device, dtype: torch.dtype) -> Iterator[tuple[str, list[Image], list[float]]]:
    """Of each way its name, pictures and the seconds of each frame, one after the other."""
    from rearview.cli.trial import bundled_frames, translate, ways, whole_span
    from rearview.config import ModelConfig
    from rearview.contract.card import ModelCard
    from rearview.contract.settings import Settings
    from rearview.engine.networks.model import DiffusionModel
    from rearview.engine.weights.checkpoint import load_model

    checkpoint = ModelConfig().checkpoint
    card = ModelCard.read(checkpoint)
    settings = Settings(PROMPT, card.strength, steps=card.steps)
    model = load_model(checkpoint, whole_span(card.steps), device, dtype)
    assert isinstance(model, DiffusionModel), "the bundled model has networks"
    clip = bundled_frames(FRAMES, SIZE)
    for spec, memory in ways(model, settings, SIZE, dtype, device):
        yield spec.session_id, *translate(model, memory, spec, clip)
