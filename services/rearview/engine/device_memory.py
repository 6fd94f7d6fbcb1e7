"""How much memory a device has for this process, and how much of it forwards take while they run.

A device that counts says both exactly. On a host the first is what the system or the control group allows,
and the second is read off the most pages that the process had, so it also counts what other threads did
meanwhile. Where neither is said, nothing is.
"""

from __future__ import annotations

from typing import Any, Protocol

import torch

from rearview.contract.memory_plan import DEFAULT_SLOTS, Budget
from rearview.engine.devices import device_name, synchronize
from rearview.machine import Machine, peak_resident_bytes, reset_peak_resident, resident_bytes, this_machine

__all__ = ["Counter", "budget_of", "counter_of", "is_counted"]

GRAPHS_SHARE = 0.05
"""Of what a replica may have: 4 GiB of 80 hold what the largest of all captured forwards works in, twice
while it is captured, and the inputs and results of each."""
COUNTING = frozenset({"cuda", "xpu"})
"""Devices whose allocator counts what is in use, and what was at most."""


def budget_of(
    device: torch.device,
    sharers: int = 1,
    share: float = 1.0,
    *,
    machine: Machine | None = None,
    graph_bytes: int | None = None,
) -> Budget:
    """What this process can have there, all that is free or its own; and what it may take for itself, no more
    than its share of the device. `share`: as it was reserved; `sharers`: replicas that have as much together.
    `graph_bytes`: what captured forwards take, if that is known; None: `GRAPHS_SHARE` where they may be.
    """
    name = device_name(device)
    if device.type in COUNTING:
        module: Any = getattr(torch, device.type)
        try:
            free, total = module.mem_get_info(device)
        except RuntimeError:  # Not every driver of Intel's says what is free.
            return Budget(name, 0, 0)
        most = free + module.memory_reserved(device)
        own = min(most, int(total * share) // sharers)
        if graph_bytes is None:
            graph_bytes = int(GRAPHS_SHARE * own) if device.type == "cuda" else 0
        return Budget(name, most, own, graph_bytes)
    most = (machine or this_machine()).memory_bytes
    # Apple's GPU shares it, and may have more than is recommended.
    own = int(torch.mps.recommended_max_memory() * share) if device.type == "mps" else most
    return Budget(name, most, own // sharers, most_slots=DEFAULT_SLOTS)


class Counter(Protocol):
    """Says what a process had at most."""

    def now(self) -> int:
        """Bytes in use."""

    def reset(self) -> None:
        """Begin anew."""

    def most(self) -> int:
        """The most bytes in use since."""


class _DeviceCounter:
    def __init__(self, device: torch.device) -> None:
        self._device, self._module = device, getattr(torch, device.type)

    def now(self) -> int:
        return int(self._module.memory_allocated(self._device))

    def reset(self) -> None:
        synchronize()
        self._module.reset_peak_memory_stats(self._device)

    def most(self) -> int:
        return int(self._module.max_memory_allocated(self._device))


class _HostCounter:
    def now(self) -> int:
        return resident_bytes()

    def reset(self) -> None:
        reset_peak_resident()

    def most(self) -> int:
        return peak_resident_bytes()


def is_counted(device: torch.device) -> bool:
    """Whether its counter counts nothing but what was run."""
    return device.type in COUNTING


def counter_of(device: torch.device) -> Counter | None:
    """None: nobody knows."""
    if device.type in COUNTING:
        return _DeviceCounter(device)
    return _HostCounter() if device.type == "cpu" and reset_peak_resident() else None
