"""What an ingress keeps for one session, counted to its tenant: what it sent, and what it answered."""

from __future__ import annotations

from collections.abc import Callable

from rearview.config import TenantConfig
from rearview.contract.events import OutputsForgotten
from rearview.contract.share import Share
from rearview.ingress.book import Book
from rearview.ingress.edge import Edge
from rearview.ingress.inputs import Inputs

__all__ = ["Keeping"]


class Keeping:
    """That of one session, until it ends."""

    def __init__(
        self, edge: Edge, tenant: TenantConfig, book: Book, next_ordinal: int, on_room: Callable[[], None]
    ) -> None:
        """`on_room()` is called whenever it may be full no more."""
        self._book, self._on_room = book, on_room
        self.budget = edge.budgets.of(tenant)
        self.inputs = Inputs(next_ordinal, edge.input_bytes, self.budget)
        self.budget.join(on_room)
        book.counts_to(self.budget.answers, lambda: edge.events(OutputsForgotten("ingress", 1)))

    def full(self) -> bool:
        """Whether the session's frames are to wait."""
        return self.inputs.full() or self.budget.answers.holds_back(self._book)

    def end(self) -> None:
        """Nothing will be sent again. What is answered stays, and counts to nobody."""
        self.inputs.forget(self.inputs.following)
        self.budget.leave(self._on_room)
        self._book.counts_to(Share())
