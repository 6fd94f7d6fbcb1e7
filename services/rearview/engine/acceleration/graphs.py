"""Networks captured once for each shape of a call and replayed: one launch instead of a thousand.

A graph reads its own input buffers and the memories' pools in place, and leaves its results in its own output
buffers. So inputs are copied in, the prediction is copied out, and updates are those buffers, valid until the
next forward, as every update is. What has been seen once runs as it is, and is captured when it comes again;
with `MOST_GRAPHS` of them, or without memory to spare, what else comes runs as it is. Both are counted.

Calls are filled up to the next of a few sizes, so that a dozen graphs serve any number of samples.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass
from typing import Any, Generic, Protocol, TypeVar

import torch
from torch import Tensor, nn

from rearview.engine.acceleration.autoencoder import AcceleratedAutoencoder
from rearview.engine.acceleration.counts import Counts
from rearview.engine.acceleration.flat import FlatCall, lengthened, padded, shape_of
from rearview.engine.acceleration.packages import Compiled
from rearview.engine.memory.protocol import Updates, Views
from rearview.engine.networks.call import UNetCall, UNetInputs
from rearview.engine.networks.control import ControlBranch
from rearview.engine.networks.model import DiffusionModel
from rearview.engine.sizes import padded_size

__all__ = ["CudaRecorder", "GraphCall", "Graphs", "Recorder", "capture"]

logger = logging.getLogger(__name__)

MOST_GRAPHS = 160
"""A start captures a dozen sizes for each kind of session, twice with a bank. What is not among them is rare,
or has slots in its key."""
WARM_UP = 2
"""Runs before a capture: libraries choose their kernels and take their workspace in the first."""
SPARE = 0.05
"""Of the device's memory, what no graph may take: forwards that run as they are need some."""

T = TypeVar("T")


class Recorder(Protocol):
    """Captures work, to do it again on the same tensors."""

    @property
    def has_room(self) -> bool:
        """Whether there is memory for one more."""

    def record(self, run: Callable[[], T]) -> tuple[Callable[[], object], T]:
        """What replays it, and what it returned: whose tensors hold the results of each replay. May run it
        several times. Raises RuntimeError for what cannot be captured.
        """


class CudaRecorder:
    """CUDA graphs, all in one pool of memory: one graph's results are gone when another is replayed."""

    def __init__(self) -> None:
        self._pool: Any = None

    @property
    def has_room(self) -> bool:
        """See `Recorder.has_room`. What torch holds and does not use is given back before; what is idle in
        the graphs' own pool is of no use to others.
        """
        torch.cuda.empty_cache()
        free, total = torch.cuda.mem_get_info()
        return free > SPARE * total

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
        with (
            # Torch stays on the stream of a capture whose end fails, unless it is called back.
            torch.cuda.stream(torch.cuda.current_stream()),
            # Other threads of the process may go on using the device meanwhile.
            torch.cuda.graph(graph, pool=self._pool, capture_error_mode="thread_local"),
        ):
            result = run()
        return graph.replay, result


@dataclass(frozen=True, slots=True, eq=False)
class _Graph(Generic[T]):
    given: tuple[Tensor, ...]
    """Its input buffers."""
    replay: Callable[[], object]
    result: T
    """Its output buffers."""

    def __call__(self, given: Sequence[Tensor]) -> T:
        for buffer, tensor in zip(self.given, given, strict=True):
            buffer.copy_(tensor, non_blocking=True)
        self.replay()
        return self.result


class Graphs(Generic[T]):
    """Graphs of one function, by what decides the shapes of the tensors that it is given. One thread."""

    def __init__(self, recorder: Recorder, most: int = MOST_GRAPHS) -> None:
        """`most`: graphs to keep."""
        self.counts = Counts()
        self._recorder, self._most = recorder, most
        self._graphs: dict[Hashable, _Graph[T]] = {}
        self._seen: set[Hashable] = set()
        self._hopeless: set[Hashable] = set()

    def find(
        self, key: Hashable, given: Sequence[Tensor], run: Callable[[Sequence[Tensor]], T]
    ) -> Callable[[Sequence[Tensor]], T] | None:
        """What does to `given` what `run` would; its result is valid until the next graph of the recorder is
        replayed. Captured now, if `key` has been here before; None: there is none.
        """
        graph = self._graphs.get(key) or self._capture(key, given, run)
        self.counts.count(accelerated=graph is not None)
        return graph

    def forget(self) -> None:
        """All of them: what they read is elsewhere now."""
        self._graphs.clear()

    def _capture(
        self, key: Hashable, given: Sequence[Tensor], run: Callable[[Sequence[Tensor]], T]
    ) -> _Graph[T] | None:
        if key not in self._seen:
            if len(self._seen) < 2 * self._most:
                self._seen.add(key)
            return None
        if key in self._hopeless or len(self._graphs) >= self._most or not self._recorder.has_room:
            return None
        buffers = tuple(tensor.clone() for tensor in given)
        try:
            replay, result = self._recorder.record(lambda: run(buffers))
        except RuntimeError:
            logger.warning("a forward of %d samples cannot be captured", len(given[0]), exc_info=True)
            self._hopeless.add(key)
            return None
        self._graphs[key] = graph = _Graph(buffers, replay, result)
        return graph


class _Left:
    """Where graphs leave what forwards leave for memory: one place for all of them, since none is read after
    another was replayed, and each would keep as much for itself.
    """

    def __init__(self) -> None:
        self._places: dict[Hashable, Tensor] = {}

    def put(self, updates: Updates) -> Updates:
        """The same updates, there. A place grows only where nothing is being captured: in the runs before."""
        return Updates(
            {
                name: update.over([self._put((name, i), tensor) for i, tensor in enumerate(update.tensors)])
                for name, update in updates.items()
            }
        )

    def _put(self, of: Hashable, tensor: Tensor) -> Tensor:
        key = of, tensor.shape[1:], tensor.dtype
        place = self._places.get(key)
        if place is None or len(place) < len(tensor):
            place = self._places[key] = torch.empty(tensor.shape, dtype=tensor.dtype, device=tensor.device)
        return place[: len(tensor)].copy_(tensor)


class GraphCall:
    """UNet calls. See the module's docstring. One thread, and one set of pools at a time."""

    def __init__(
        self, inner: UNetCall, recorder: Recorder, most: int = MOST_GRAPHS, sizes: Sequence[int] = ()
    ) -> None:
        """`inner`: what is captured. `most`: graphs to keep. `sizes`: see `padded_size`."""
        self._inner, self._sizes = inner, sizes
        self._graphs: Graphs[tuple[Tensor, Updates]] = Graphs(recorder, most)
        self._left = _Left()
        self._pooled: dict[str, tuple[Tensor, ...]] = {}
        """By kind of memory. Kept: a graph would read on where they were."""

    @property
    def counts(self) -> Counts:
        """Of calls."""
        return self._graphs.counts

    def __call__(self, inputs: UNetInputs, views: Views) -> tuple[Tensor, Updates]:
        """See `UNetCall`."""
        self._check_pools(views)
        samples = len(inputs.latent_BCHW)
        filled, filled_views = self._filled(inputs, views)
        changing, call = FlatCall.changing(filled, filled_views), FlatCall(filled.given, filled_views)

        def run(changing: Sequence[Tensor]) -> tuple[Tensor, Updates]:
            prediction_BCHW, updates = self._inner(*call.over(changing, FlatCall.pooled(filled_views)))
            return prediction_BCHW, self._left.put(updates)

        graph = self._graphs.find(shape_of(filled, filled_views), changing, run)
        if graph is None:
            return self._inner(inputs, views)
        prediction_BCHW, updates = graph(changing)
        return prediction_BCHW[:samples].clone(), updates if filled is inputs else updates.first(samples)

    def _filled(self, inputs: UNetInputs, views: Views) -> tuple[UNetInputs, Views]:
        """The call with as many samples as graphs have. Not one whose views say which pasts they read: it has
        a graph of its own in either case.
        """
        samples = len(inputs.latent_BCHW)
        size = padded_size(samples, self._sizes)
        if size == samples:
            return inputs, views
        more = views.beside([0] * (size - samples))
        # Compared before anything is copied: there may be many of these in a second.
        is_same = all(view.key == more[name].key for name, view in views.items())
        return (padded(inputs, size), more) if is_same else (inputs, views)

    def _check_pools(self, views: Views) -> None:
        """Forget the graphs of pools that were exchanged."""
        for name, view in views.items():
            pooled = view.pooled
            known = self._pooled.setdefault(name, pooled)
            if pooled and known[0].data_ptr() != pooled[0].data_ptr():
                self._graphs.forget()
                self._pooled[name] = pooled


def capture(model: DiffusionModel, recorder: Recorder, sizes: Sequence[int] = ()) -> Sequence[Counts]:
    """Let a model replay what its networks do, as they are or as they were compiled; returns the counts of
    their calls: of each denoiser, then of the autoencoder's networks if there are any, then of each
    ControlNet. `sizes`: see `padded_size`.
    """
    counts: list[Counts] = []
    branches: dict[str, ControlBranch] = {}
    for denoiser in model.denoisers.values():
        denoiser.call = call = GraphCall(denoiser.call, recorder, sizes=sizes)
        counts.append(call.counts)
        branches |= denoiser.controls.branches
    if model.vae is not None:
        graphs: Graphs[Sequence[Tensor]] = Graphs(recorder)

        def find(part: str, network: nn.Module, given_BCHW: Tensor) -> Compiled | None:
            samples = len(given_BCHW)
            filled_BCHW = lengthened(given_BCHW, padded_size(samples, sizes))
            key = part, filled_BCHW.shape, filled_BCHW.dtype
            graph = graphs.find(key, [filled_BCHW], lambda given: network(*given))
            return None if graph is None else lambda _: [each[:samples] for each in graph([filled_BCHW])]

        model.vae = AcceleratedAutoencoder(model.vae, find)
        counts.append(graphs.counts)
    return [*counts, *(_capture_control(branch, recorder, sizes) for branch in branches.values())]


def _capture_control(branch: ControlBranch, recorder: Recorder, sizes: Sequence[int]) -> Counts:
    graphs: Graphs[Sequence[Tensor]] = Graphs(recorder)

    def call(given: Sequence[Tensor]) -> Sequence[Tensor]:
        samples = len(given[0])
        filled = [lengthened(tensor, padded_size(samples, sizes)) for tensor in given]
        key = tuple((tensor.shape, tensor.dtype) for tensor in filled)
        graph = graphs.find(key, filled, lambda tensors: branch(*tensors))
        # Copied: the next ControlNet's graph may write where this one's residuals are.
        return branch(*given) if graph is None else [each[:samples].clone() for each in graph(filled)]

    branch.call = call
    return graphs.counts
