"""Costs that an earlier start has measured, kept on disk: what they follow from, and whether they still hold.

A file for each combination of model, span, device, threads, sizes and code, in the user's cache folder. None
is trusted blindly: it must be young, whole, and near what a forward takes now.
"""

from __future__ import annotations

import functools
import hashlib
import json
import logging
import math
import os
import platform
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from rearview.config import ServiceConfig, SpanConfig
from rearview.contract.chain import OperatorKind
from rearview.engine.bench import Timing
from rearview.engine.calibration import Timings
from rearview.engine.devices import device_name
from rearview.environment import cache_folder
from rearview.replica.fingerprint import origin_of

__all__ = ["KeptTimings", "digest_of", "kernels_of", "key_of"]

logger = logging.getLogger(__name__)

FORMAT = 4
MAX_AGE_S = 7 * 86400.0
"""Drivers, libraries and machines change."""
DOUBT = 3.0
"""What a forward takes now may differ by this factor: one was measured beside other work."""
NEGLIGIBLE_S = 0.005
"""Below that it may differ by any."""


def key_of(config: ServiceConfig, span: SpanConfig, device: torch.device) -> Mapping[str, Any]:
    """All that the costs of a span's forwards follow from. Reads a little of each file of the model."""
    model = config.model
    origin = origin_of(model)
    return {
        "model": origin.model,
        "dtype": origin.dtype,
        "size": [model.width, model.height, model.max_steps],
        "adapters": [sorted(model.adapters), sorted(model.merged_adapters)],
        "operators": list(span.operators),
        "threads": span.num_threads,
        "max_batch": span.max_batch,
        "bank": None if config.bank is None else config.bank.model_dump(mode="json"),
        "cache": None if config.cache is None else config.cache.model_dump(mode="json"),
        "device": _device_name(device),
        "torch": torch.__version__,
        "code": _code(),
    }


def kernels_of(device: torch.device, num_threads: int, compiled: str) -> str:
    """What networks compute with here: replicas that say the same give equal bits. `compiled`: what of them
    is compiled, as `use_compiled` says, and `Memories.kernels`.
    """
    found = [_device_name(device), torch.__version__, num_threads, _code(), compiled]
    return digest_of({"kernels": found})


def digest_of(key: Mapping[str, Any]) -> str:
    """In few characters, as a name of a file."""
    return hashlib.sha256(json.dumps(key, sort_keys=True).encode()).hexdigest()[:32]


class KeptTimings:
    """Those of one key."""

    def __init__(
        self, key: Mapping[str, Any], folder: Path | None = None, clock: Callable[[], float] = time.time
    ) -> None:
        """`folder`: where the cache is; None: the user's. `clock`: seconds since 1970."""
        self._key, self._clock = key, clock
        name = digest_of(key)
        place = folder or cache_folder()
        self._path = None if place is None else place / "costs" / f"{name}.json"

    def read(self, count: int) -> Sequence[Timings] | None:
        """`count` of them; None if there are none, or none to be trusted."""
        if self._path is None:
            return None
        try:
            text = self._path.read_text(encoding="utf-8")
        except FileNotFoundError:
            return None
        except (OSError, UnicodeDecodeError) as error:
            logger.warning("kept costs cannot be read, they are measured anew: %s", type(error).__name__)
            return None
        try:
            content = json.loads(text)
            age_s = self._clock() - float(content["measured_s"])
            found = [_timings(one) for one in content["timings"]]
            if (content["format"], content["key"]) != (FORMAT, self._key) or len(found) != count:
                raise ValueError("of something else")
        except (ValueError, LookupError, TypeError, AttributeError):
            logger.warning("kept costs are broken, they are measured anew: %s", self._path)
            return None
        return found if 0.0 <= age_s <= MAX_AGE_S else None

    def holds(self, kept: Timings, now_s: Mapping[OperatorKind, float]) -> bool:
        """Whether what rows take now is near what they took. `now_s`: by kind, of one row."""
        for kind, seconds in now_s.items():
            low, high = sorted((seconds, kept[kind].row_s[1])) if kind in kept else (0.0, math.inf)
            if high > max(NEGLIGIBLE_S, DOUBT * low):
                logger.info("kept costs do not hold any more, they are measured anew")
                return False
        return True

    def write(self, timings: Sequence[Timings]) -> None:
        """Keep them for the next start; where that cannot be, it measures too."""
        if self._path is None:
            return
        content = {
            "format": FORMAT,
            "key": self._key,
            "measured_s": self._clock(),
            "timings": [_plain(one) for one in timings],
        }
        try:
            self._path.parent.mkdir(parents=True, exist_ok=True)
            number, beside = tempfile.mkstemp(dir=self._path.parent, prefix=".new-")
            with os.fdopen(number, "w", encoding="utf-8") as file:
                json.dump(content, file)
            os.replace(beside, self._path)
        except OSError as error:
            logger.warning("costs cannot be kept: %s", error)


def _plain(timings: Timings) -> Mapping[str, Any]:
    return {
        kind.value: {
            "row_s": {str(size): seconds for size, seconds in timing.row_s.items()},
            "window_s": {str(size): seconds for size, seconds in timing.window_s.items()},
            "write_s": timing.write_s,
            "control_s": timing.control_s,
            "row_bytes": {str(size): number for size, number in timing.row_bytes.items()},
            "window_bytes": {str(size): number for size, number in timing.window_bytes.items()},
            "control_bytes": {str(size): number for size, number in timing.control_bytes.items()},
            "draw_s": dict(timing.draw_s),
        }
        for kind, timing in timings.items()
    }


def _timings(content: Mapping[str, Any]) -> Timings:
    """Undo `_plain`. Raises ValueError, LookupError, TypeError or AttributeError."""
    return {
        OperatorKind(kind): Timing(
            _seconds(timing["row_s"], needs=1),
            _seconds(timing["window_s"]),
            _second(timing["write_s"]),
            _bytes(timing["row_bytes"]),
            _bytes(timing["window_bytes"]),
            _second(timing["control_s"]),
            _bytes(timing["control_bytes"]),
            {str(name): _second(seconds) for name, seconds in timing["draw_s"].items()},
        )
        for kind, timing in content.items()
    }


def _seconds(content: Mapping[str, Any], needs: int | None = None) -> Mapping[int, float]:
    found = {int(size): _second(seconds) for size, seconds in content.items()}
    if min(found, default=1) < 1 or (needs is not None and needs not in found):
        raise ValueError("numbers of samples are missing")
    return found


def _bytes(content: Mapping[str, Any]) -> Mapping[int, int]:
    return {size: int(number) for size, number in _seconds(content).items()}


def _second(value: Any) -> float:
    if not isinstance(value, float | int) or not 0.0 <= value < math.inf:
        raise ValueError("no seconds")
    return float(value)


def _device_name(device: torch.device) -> str:
    if device.type != "cpu":
        return device_name(device)
    capability = torch.backends.cpu.get_cpu_capability()
    return f"{device.type}: {platform.machine()}, {capability}, {os.cpu_count()} cores"


@functools.cache
def _code() -> str:
    """What the engine's sources are, in few characters."""
    root = Path(__file__).parents[1] / "engine"
    digest = hashlib.sha256()
    for path in sorted(root.rglob("*.py")):
        digest.update(str(path.relative_to(root)).encode() + b"\0" + path.read_bytes())
    return digest.hexdigest()[:32]
