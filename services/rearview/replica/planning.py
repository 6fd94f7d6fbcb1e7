"""The memory of a replica, planned while it starts: refused before weights are loaded if it can be known,
else once they are and forwards were measured; and with `slots: auto` as many slots as then fit.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager

import torch

from rearview.config import ServiceConfig, SpanConfig
from rearview.contract.failure import Failure
from rearview.contract.memory_plan import Budget, MemoryPlan, Part, plan_memory, workspace_bytes
from rearview.engine.calibration import Timings
from rearview.engine.device_memory import budget_of, is_counted
from rearview.engine.devices import pick_dtype
from rearview.engine.failures import failure_of
from rearview.engine.networks.model import DiffusionModel, Model
from rearview.errors import ConfigError
from rearview.machine import anonymous_bytes, resident_bytes
from rearview.replica.needs import known_plan, sharing

__all__ = ["Planning"]

logger = logging.getLogger(__name__)


class Planning:
    """Of one start. Make it before weights are loaded."""

    def __init__(self, config: ServiceConfig, span: SpanConfig, device: torch.device) -> None:
        """Raises ConfigError for what is known not to fit."""
        self._span, self._device = span, device
        self._sharing = sharing(config, span, on_cpu=device.type == "cpu")
        dtype = str(pick_dtype(config.model.dtype, device)).removeprefix("torch.")
        self._known = known_plan(config, span, dtype, self._budget())
        self._parts = [Part("process", anonymous_bytes())] if device.type == "cpu" else []
        self._slot: Mapping[str, int] = {}

    def loaded(self, model: Model, slot: Mapping[str, int]) -> None:
        """The weights are there, and one slot. `slot`: its bytes by kind of memory."""
        self._slot = slot
        weights = Part("weights", model.weight_bytes if isinstance(model, DiffusionModel) else 0)
        if self._device.type == "cpu":
            counted = weights.num_bytes + sum(slot.values()) + sum(part.num_bytes for part in self._parts)
            self._parts.append(Part("libraries", max(0, resident_bytes() - counted), is_certain=False))
        self._parts.append(weights)

    @contextmanager
    def taking(self, what: str) -> Iterator[None]:
        """Memory is taken inside. Raises ConfigError, with all that is known, if there is not enough."""
        try:
            yield
        except Exception as error:
            if failure_of(error) is not Failure.NO_MEMORY:
                raise
            raise ConfigError(f"there is not enough memory for {what}. {self._known}") from None

    def plan(self, timings: Sequence[Timings], graph_bytes: int | None = None) -> MemoryPlan:
        """The plan, told in the log. `timings`: of sessions of each kind; `graph_bytes`: see `budget_of`.
        Raises ConfigError for what does not fit.
        """
        parts = list(self._parts)
        measured = [
            each
            for times in timings
            for one in times.values()
            for each in (one.row_bytes, one.window_bytes, one.control_bytes)
        ]
        if any(measured):
            samples = self._span.max_batch
            is_certain = is_counted(self._device) and all(max(each) >= samples for each in measured if each)
            name = f"forwards of {samples}"
            parts.append(Part(name, workspace_bytes(measured, samples), is_certain))
        budget = self._budget(graph_bytes)
        self._known = plan_memory(self._span.name, budget, parts, self._slot, self._span.fixed_slots)
        logger.info("memory of %s", self._known)
        return self._known

    def _budget(self, graph_bytes: int | None = None) -> Budget:
        return budget_of(self._device, *self._sharing, graph_bytes=graph_bytes)
