"""What torch computes on and in: seen and chosen here, and nowhere else.

The choices are functions of what was seen, so those for machines that are not at hand are tested too. Noise
is always drawn on the host and no device is asked for float64: Apple's has none.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from rearview.errors import ConfigError
from rearview.machine import Machine, this_machine

__all__ = [
    "CPU",
    "PINS",
    "Seen",
    "choose_device",
    "choose_dtype",
    "device_name",
    "draws_ahead",
    "make_current",
    "memory_format",
    "pick_device",
    "pick_dtype",
    "release_unused",
    "same_device",
    "see",
    "synchronize",
    "upload",
]

ORDER = ("cuda", "mps", "xpu", "cpu")
"""`auto` takes the first that there is."""
HALF = {"cuda": torch.float16, "mps": torch.float16, "xpu": torch.float16}
"""What `auto` computes in. Measured on CUDA alone. Apple's first GPUs have no bfloat16 in hardware."""
CPU = torch.device("cpu")
PINS = frozenset({"cuda"})
"""Which copies to and from pinned memory of the host by itself, while the host goes on."""
QUEUES = frozenset({"cuda", "xpu"})
"""Whose copies from the host may return before they are done: the source is kept for them. Apple's read it
later, when it may be gone."""


@dataclass(frozen=True)
class Seen:
    """What this machine's torch has."""

    devices: tuple[str, ...] = ("cpu",)
    """In the order of preference."""
    has_mkldnn: bool = True
    """Whether torch was built with oneDNN, which multiplies bfloat16 on CPUs."""
    has_bfloat16: bool = False
    """Whether the CPU has it in hardware; emulated, it is slower than float32."""


def see(machine: Machine | None = None) -> Seen:
    """Ask torch and the machine. Starts no device."""
    machine = machine or this_machine()
    has = {
        "cuda": torch.cuda.is_available(),
        "mps": torch.backends.mps.is_available(),
        "xpu": hasattr(torch, "xpu") and torch.xpu.is_available(),
        "cpu": True,
    }
    return Seen(
        tuple(kind for kind in ORDER if has[kind]),
        torch.backends.mkldnn.is_available(),
        torch.backends.cpu.get_cpu_capability().startswith("AVX512") and "avx512_bf16" in machine.cpu_flags,
    )


def choose_device(name: str, seen: Seen) -> torch.device:
    """`auto`: the best that there is. Raises ConfigError for a device that there is not."""
    if name == "auto":
        return torch.device(seen.devices[0])
    try:
        device = torch.device(name)
    except RuntimeError:
        raise ConfigError(f"model.device {name!r}: is none of auto, {', '.join(ORDER)}") from None
    if device.type not in seen.devices:
        raise ConfigError(
            f"model.device {name!r}: torch {torch.__version__} has {', '.join(seen.devices)} here"
        )
    return device


def choose_dtype(name: str, kind: str, seen: Seen) -> torch.dtype:
    """`auto`: half precision on accelerators; bfloat16 on CPUs that gain by it; else float32.

    `kind`: type of the device. Raises ConfigError for what it cannot compute in.
    """
    if name == "auto":
        on_cpu = torch.bfloat16 if seen.has_mkldnn and seen.has_bfloat16 else torch.float32
        return HALF.get(kind, on_cpu)
    if name == "float64" and kind == "mps":
        raise ConfigError("model.dtype float64: model.device mps has none")
    dtype: torch.dtype = getattr(torch, name)
    return dtype


def pick_device(name: str) -> torch.device:
    """`choose_device` on this machine."""
    return choose_device(name, see())


def pick_dtype(name: str, device: torch.device) -> torch.dtype:
    """`choose_dtype` on this machine."""
    return choose_dtype(name, device.type, see())


def device_name(device: torch.device) -> str:
    """As people call it."""
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    if device.type == "xpu":
        return str(torch.xpu.get_device_name(device))
    return {"mps": "Apple GPU", "cpu": "CPU"}.get(device.type, device.type)


def memory_format(device: torch.device) -> torch.memory_format:
    """How networks and what enters them lie in memory: channels last where that was measured to be faster,
    with cuDNN and oneDNN.
    """
    is_faster = device.type == "cuda" or (device.type == "cpu" and torch.backends.mkldnn.is_available())
    return torch.channels_last if is_faster else torch.contiguous_format


def make_current(device: torch.device) -> None:
    """Let this thread use it where no device is named: streams, graphs and pinned memory are of the current
    one.
    """
    if device.type in PINS:
        torch.cuda.set_device(device)


def same_device(one: torch.device, other: torch.device) -> bool:
    """Whether both are the same, where a device without a number is the first of its kind."""
    return one.type == other.type and (one.index or 0) == (other.index or 0)


def draws_ahead(device: torch.device) -> bool:
    """Whether noise and permutations are drawn before they are needed, on a thread, into pinned memory: where
    the host has time while the device computes. On a CPU that was measured to gain nothing.
    """
    return device.type == "cuda"


def upload(tensor: Tensor, device: torch.device) -> Tensor:
    """A tensor of the host on `device`, without waiting where that is safe."""
    return tensor.to(device, non_blocking=device.type in QUEUES)


def synchronize() -> None:
    """Wait until every device in use has done what it was asked for."""
    module: Any
    for kind in ("cuda", "xpu"):
        module = getattr(torch, kind, None)
        if module is not None and module.is_initialized():
            module.synchronize()
    if torch.backends.mps.is_available():
        torch.mps.synchronize()


def release_unused() -> None:
    """Give memory back that is cached and not in use: in pieces, it may be too small for what comes next."""
    module: Any
    for kind in ("cuda", "xpu"):
        module = getattr(torch, kind, None)
        if module is not None and module.is_initialized():
            module.empty_cache()
    if torch.backends.mps.is_available():
        torch.mps.empty_cache()
