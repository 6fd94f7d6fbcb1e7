"""Images that an ingress keeps for the sessions of a tenant, so that none can fill its memory.

Beyond it nothing is forgotten: the tenant's frames wait, and in the end credit stops their sender.
"""

from __future__ import annotations

from collections.abc import Callable

from rearview.access import TenantConfig

__all__ = ["Budget", "Budgets"]


class Budget:
    """That of one tenant. For one event loop."""

    def __init__(self, max_bytes: int) -> None:
        self.max_bytes, self.num_bytes = max_bytes, 0
        self._members: set[Callable[[], None]] = set()

    def join(self, on_room: Callable[[], None]) -> None:
        """`on_room()` is called when it is full no more, until `leave`."""
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
            for on_room in tuple(self._members):
                on_room()

    def half_full(self) -> bool:
        """Whether it is time to make room."""
        return 2 * self.num_bytes >= self.max_bytes

    def full(self) -> bool:
        """Whether no more should be kept before something is forgotten."""
        return self.num_bytes >= self.max_bytes


class Budgets:
    """Those of all tenants. For one event loop."""

    def __init__(self) -> None:
        self._budgets: dict[str, Budget] = {}

    def of(self, tenant: TenantConfig) -> Budget:
        """The tenant's, as large as its entry now says."""
        budget = self._budgets.setdefault(tenant.name, Budget(tenant.max_kept_bytes))
        budget.max_bytes = tenant.max_kept_bytes
        return budget
