"""The one seam between the engine and what sessions remember.

    views = memories.gather(rows)                 # what the rows read, by kind
    forward = model.forward(rows, views)          # changes nothing
    memories.scatter(rows, forward.updates)       # what they leave, by kind

A *kind* of memory (feature bank, temporal cache, range of depth) keeps the pasts of all sessions of an engine
in slots. A view and an update are tensors of fixed shape beside a static, hashable key. Rows that may share
a forward have equal groups; for equal groups, numbers of samples and keys every shape is the same, so that a
forward can be compiled, and captured, once for each. A kind knows neither the engine nor its siblings;
`compose.Memories` puts several together, `build` decides which.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Hashable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import ClassVar, Generic, Never, Protocol, Self, TypeVar, cast

from torch import Tensor

from rearview.contract.chain import Operator, OperatorKind
from rearview.contract.session import SessionSpec
from rearview.contract.size import Size
from rearview.engine.memory.export import Chunk
from rearview.engine.rows import Row

__all__ = ["AnyMemory", "Kind", "Memory", "Update", "Updates", "View", "Views", "Write"]

Write = Callable[[], None]
"""The writing that is left to do: it only copies what has been computed and checked."""


class Update(Protocol):
    """What the rows of one forward leave to one kind of memory."""

    @property
    def key(self) -> Hashable:
        """Decides, with the number of samples, the shapes of `tensors`."""

    @property
    def tensors(self) -> tuple[Tensor, ...]:
        """May be part of the network's own activations: valid until the next forward."""

    def over(self, tensors: Sequence[Tensor]) -> Self:
        """An update of the same key, of others of the same shapes."""


class View(Protocol):
    """What the samples of one forward read from one kind of memory. Valid until the next `scatter`."""

    @property
    def key(self) -> Hashable:
        """Decides, with the number of samples, the shapes of `tensors` and what a network does with them."""

    @property
    def tensors(self) -> tuple[Tensor, ...]:
        """What differs from forward to forward."""

    @property
    def pooled(self) -> tuple[Tensor, ...]:
        """Where the pasts lie that are read in place: always the same tensors, at the same addresses."""

    def over(self, tensors: Sequence[Tensor], pooled: Sequence[Tensor]) -> Self:
        """A view of the same key over others of the same shapes."""

    def beside(self, indices: Sequence[int]) -> Self:
        """A view of these samples followed by a second one of some: predictions under another prompt. What
        these leave is worth nothing (`Updates.first`).
        """


ViewT_co = TypeVar("ViewT_co", bound=View, covariant=True)
UpdateT_contra = TypeVar("UpdateT_contra", bound=Update, contravariant=True)
V = TypeVar("V", bound=View)
U = TypeVar("U", bound=Update)


@dataclass(frozen=True)
class Kind(Generic[ViewT_co, UpdateT_contra]):
    """Name of a kind of memory, which knows the types of its views and updates."""

    name: str


class Views(dict[str, View]):
    """What a forward's samples read, by the name of the kind. A kind that they do not use is not in it."""

    def of(self, kind: Kind[V, Never]) -> V | None:
        """The view of a kind; None if the samples do not use it."""
        return cast("V | None", self.get(kind.name))  # Under a name there are views of its kind alone.

    def beside(self, indices: Sequence[int]) -> Views:
        """See `View.beside`."""
        return Views({name: view.beside(indices) for name, view in self.items()})


class Updates(dict[str, Update]):
    """What a forward's samples leave, by the name of the kind: for each view one update."""

    def first(self, samples: int) -> Updates:
        """What the first of them leave; views."""
        return Updates(
            {
                name: update.over([tensor[:samples] for tensor in update.tensors])
                for name, update in self.items()
            }
        )

    def of(self, kind: Kind[View, U]) -> U | None:
        """The update of a kind; None if there is none."""
        return cast("U | None", self.get(kind.name))


class Memory(ABC, Generic[ViewT_co, UpdateT_contra]):
    """The pasts of all sessions, of one kind. Not thread-safe: the engine is the only caller."""

    kind: Kind[ViewT_co, UpdateT_contra]
    operators: ClassVar[frozenset[OperatorKind]]
    """Operators whose rows read or write it. It is asked about no others."""
    kernels: str = ""
    """See `Memories.kernels`."""

    @abstractmethod
    def allocate(self, spec: SessionSpec) -> None:
        """Take a slot, with room for all `spec.max_steps` steps. Raises Refused(NO_CAPACITY), and
        InvalidRequest for a session that does not fit; changes nothing then.
        """

    def check_fits(self, spec: SessionSpec, size: Size) -> None:
        """Raises InvalidRequest if a slot has no room for frames of another size in that session."""
        return

    @abstractmethod
    def free(self, session_id: str) -> None:
        """Give the slot back; what it held can no longer be read. Unknown sessions are ignored."""

    @abstractmethod
    def reset(self, session_id: str) -> None:
        """Forget the past, keep the slot: the next frame finds it as in a new session."""

    def group(self, spec: SessionSpec, operator: Operator) -> Hashable:
        """What of it keeps rows of a session out of a forward with others: all that decides a shape and
        differs between sessions. None: nothing does.
        """
        return None

    def warm_up_frames(self, spec: SessionSpec) -> int:
        """How many of the session's first frames go through every denoising step together, as one window
        row, and again after a change that makes what they left worthless. 0: none, frames never wait for
        others.
        """
        return 0

    def keeps_order(self, spec: SessionSpec, operator: Operator) -> bool:
        """Whether rows of `operator`, which is not a denoising step, read what an earlier frame wrote, so
        that one runs after the other. Denoising steps always keep order.
        """
        return False

    def num_writes(self, row: Row) -> int:
        """How many writes the row's commit makes that not every row of its group makes: each costs what the
        cost table says of a write. Depends on the ordinal and the past, never on load. What it says is for
        the scheduler alone; `prepare` decides by itself what is written.
        """
        return 0

    def changes_past(self, row: Row) -> bool:
        """Whether the row's commit would change the session's past. If it would not, and earlier rows under
        the same settings commit or are lost meanwhile, it would not then either.
        """
        return True

    @abstractmethod
    def gather(self, rows: Sequence[Row]) -> ViewT_co | None:
        """What these rows, all of one group, read: one sample for each row's frame, in order. None if none
        of them uses this memory. Changes nothing.
        """

    @abstractmethod
    def prepare(self, rows: Sequence[Row], update: UpdateT_contra) -> Write:
        """Compute what these rows leave. Nothing has changed until the result is called, which does not
        fail: so a fault leaves every past as it was.
        """

    @abstractmethod
    def export(self, session_id: str) -> Iterator[Chunk]:
        """The session's past, a header first, then keyed (step, layer); copies, each made when it is asked
        for. The session must not run meanwhile (AssertionError).
        """

    @abstractmethod
    def prepare_import(self, session_id: str, chunks: Iterable[Chunk]) -> Write:
        """Check an export that is to replace the past of a session that has a slot. Raises ValueError if it
        does not fit. Nothing has changed until the result is called. Steps that are not kept here are
        ignored and steps that the export lacks stay as they are, so that the exports of several spans can
        be put together and one of all steps taken apart.
        """

    @abstractmethod
    def bytes_per_session(self, spec: SessionSpec) -> int:
        """Bytes that `allocate(spec)` takes from the pool. What the engine holds of frames in flight and
        for shadow windows is host memory, and not among them.
        """

    @property
    @abstractmethod
    def free_slots(self) -> int:
        """Sessions that still fit."""

    @abstractmethod
    def check_integrity(self) -> None:
        """Assert that slots are owned once, and that what is not owned is empty."""

    def scatter(self, rows: Sequence[Row], update: UpdateT_contra | None) -> None:
        """Write what the rows left: the only change to a pool outside allocate, free, reset and import."""
        if update is not None:
            self.prepare(rows, update)()

    def prepare_named(self, rows: Sequence[Row], updates: Updates) -> Write:
        """`prepare` with the update under this kind's name."""
        update = updates.of(self.kind)
        assert update is not None, f"the forward left nothing to the {self.kind.name}"
        return self.prepare(rows, update)

    def import_(self, session_id: str, chunks: Iterable[Chunk]) -> None:
        """Replace the session's past. Raises ValueError if it does not fit; nothing has changed then."""
        self.prepare_import(session_id, chunks)()


AnyMemory = Memory[View, Never]
"""A memory of whatever kind."""
