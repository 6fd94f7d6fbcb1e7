"""Images that an ingress keeps for the sessions of a tenant, so that none can fill its memory.

Of those that were received nothing is forgotten beyond it: the tenant's frames wait, and in the end credit
stops their sender. Answers have as much again to themselves. No client need acknowledge any, so that beyond
it the oldest goes that was sent, of the session that keeps most; where none was, that session's frames wait.
"""

from __future__ import annotations

from collections.abc import Callable

from rearview.access import TenantConfig
from rearview.contract.share import Share

__all__ = ["Budget", "Budgets"]


class Budget:
    """That of one tenant. For one event loop."""

    def __init__(self, max_bytes: int) -> None:
        self.max_bytes, self.num_bytes = max_bytes, 0
        self.answers = Share(max_bytes, self._tell_room)
        self._members: set[Callable[[], None]] = set()

    def join(self, on_room: Callable[[], None]) -> None:
        """`on_room()` is called when it is full no more, or answers have room, until `leave`."""
        self._members.add(on_room)

    def leave(self, on_room: Callable[[], None]) -> None:
        """Undo `join`."""
        self._members.discard(on_room)

    def take(self, num_bytes: int) -> None:
        """So much more is kept."""
        self.num_bytes += num_bytes

    def give_back(self, num_bytes: int) -> None:
        """So much less is."""
        was_full = self.full()
        self.num_bytes -= num_bytes
        if was_full and not self.full():
            self._tell_room()

    def half_full(self) -> bool:
        """Whether it is time to make room."""
        return 2 * self.num_bytes >= self.max_bytes

    def full(self) -> bool:
        """Whether no more should be kept before something is forgotten."""
        return self.num_bytes >= self.max_bytes

    def _tell_room(self) -> None:
        for on_room in tuple(self._members):
            on_room()


class Budgets:
    """Those of all tenants. For one event loop."""

    def __init__(self) -> None:
        self._budgets: dict[str, Budget] = {}

    def of(self, tenant: TenantConfig) -> Budget:
        """The tenant's, as large as its entry now says."""
        budget = self._budgets.setdefault(tenant.name, Budget(tenant.max_kept_bytes))
        budget.max_bytes = budget.answers.max_bytes = tenant.max_kept_bytes
        return budget
