"""UNet calls captured once for their shape and replayed: one launch instead of a thousand.

A graph reads its own input buffers and the memories' pools in place, and leaves its results in its own
output buffers. So inputs are copied in, the prediction is copied out, and updates are those buffers, valid
until the next forward, as every update is. What has been seen once runs eager, and is captured when it comes
again; with `MOST_GRAPHS` of them, what else comes runs eager. Both are counted.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Protocol, TypeVar

import torch
from torch import Tensor

from rearview.engine.acceleration.counts import Counts
from rearview.engine.acceleration.flat import CallShape, FlatCall, shape_of
from rearview.engine.memory.protocol import Updates, Views
from rearview.engine.networks.call import UNetCall, UNetInputs

__all__ = ["CudaRecorder", "GraphCall", "Recorder"]

logger = logging.getLogger(__name__)

MOST_GRAPHS = 64
"""A shape that is not among them is rare, or there are slots in its key."""
WARM_UP = 2
"""Runs before a capture: libraries choose their kernels and take their workspace in the first."""

T = TypeVar("T")


class Recorder(Protocol):
    """Captures work, to do it again on the same tensors."""

    def record(self, run: Callable[[], T]) -> tuple[Callable[[], object], T]:
        """What replays it, and what it returned: whose tensors hold the results of each replay. May run it
        several times. Raises RuntimeError for what cannot be captured.
        """


class CudaRecorder:
    """CUDA graphs, all in one pool of memory: one graph's results are gone when another is replayed."""

    def __init__(self) -> None:
        self._pool: Any = None

    def record(self, run: Callable[[], T]) -> tuple[Callable[[], object], T]:
        """See `Recorder.record`."""
        side = torch.cuda.Stream()
        side.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(side):
            for _ in range(WARM_UP):
                run()
        torch.cuda.current_stream().wait_stream(side)
        graph = torch.cuda.CUDAGraph()
        self._pool = self._pool or torch.cuda.graph_pool_handle()
        # Other threads of the process may go on using the device meanwhile.
        with torch.cuda.graph(graph, pool=self._pool, capture_error_mode="thread_local"):
            result = run()
        return graph.replay, result


@dataclass(frozen=True, slots=True, eq=False)
class _Graph:
    changing: tuple[Tensor, ...]
    """Its input buffers."""
    replay: Callable[[], object]
    prediction_BCHW: Tensor
    updates: Updates


class GraphCall:
    """See the module's docstring. One thread, and one set of pools at a time."""

    def __init__(self, eager: UNetCall, recorder: Recorder, most: int = MOST_GRAPHS) -> None:
        """`most`: graphs to keep."""
        self.counts = Counts()
        self._eager, self._recorder, self._most = eager, recorder, most
        self._graphs: dict[CallShape, _Graph] = {}
        self._seen: set[CallShape] = set()
        self._hopeless: set[CallShape] = set()
        self._pooled: dict[str, tuple[Tensor, ...]] = {}
        """By kind of memory. Kept: a graph would read on where they were."""

    def __call__(self, inputs: UNetInputs, views: Views) -> tuple[Tensor, Updates]:
        """See `UNetCall`."""
        self._check_pools(views)
        shape = shape_of(inputs, views)
        graph = self._graphs.get(shape) or self._capture(shape, inputs, views)
        if graph is None:
            self.counts.count(accelerated=False)
            return self._eager(inputs, views)
        for buffer, tensor in zip(graph.changing, FlatCall.changing(inputs, views), strict=True):
            buffer.copy_(tensor, non_blocking=True)
        graph.replay()
        self.counts.count(accelerated=True)
        return graph.prediction_BCHW.clone(), graph.updates

    def _capture(self, shape: CallShape, inputs: UNetInputs, views: Views) -> _Graph | None:
        """None: not now."""
        if shape not in self._seen:
            if len(self._seen) < 2 * self._most:
                self._seen.add(shape)
            return None
        if shape in self._hopeless or len(self._graphs) >= self._most:
            return None
        changing = tuple(tensor.clone() for tensor in FlatCall.changing(inputs, views))
        given = FlatCall(inputs.given, views).over(changing, FlatCall.pooled(views))
        try:
            replay, (prediction_BCHW, updates) = self._recorder.record(lambda: self._eager(*given))
        except RuntimeError:
            logger.warning("a forward of %d samples cannot be captured", shape.samples, exc_info=True)
            self._hopeless.add(shape)
            return None
        self._graphs[shape] = graph = _Graph(changing, replay, prediction_BCHW, updates)
        return graph

    def _check_pools(self, views: Views) -> None:
        """Forget the graphs of pools that were exchanged."""
        for name, view in views.items():
            pooled = view.pooled
            known = self._pooled.setdefault(name, pooled)
            if pooled and known[0].data_ptr() != pooled[0].data_ptr():
                self._graphs.clear()
                self._pooled[name] = pooled
