"""Memory in one forward of a UNet: views are opened and handed to the layers, what is left is collected."""

from __future__ import annotations

from typing import Any

from rearview.engine.memory.bank.view import BANK, BankReader
from rearview.engine.memory.cache.view import CACHE
from rearview.engine.memory.protocol import Updates, Views

__all__ = ["Readers"]


class Readers:
    """A feature bank for spatial and a cache for temporal attention, or one of them, or none."""

    def __init__(self, views: Views) -> None:
        bank, cache = views.of(BANK), views.of(CACHE)
        self._bank = None if bank is None else BankReader(bank)
        self._cache = None if cache is None else cache.reader()

    @property
    def arguments(self) -> dict[str, Any]:
        """What the UNet is called with. Without a view nothing: the forward is then the plain one."""
        arguments: dict[str, Any] = {}
        if self._bank is not None:
            arguments["cross_attention_kwargs"] = {"memory": self._bank}
        if self._cache is not None:
            arguments["attend"] = self._cache.attend
        return arguments

    def collect(self) -> Updates:
        """The updates of the whole forward."""
        updates = Updates()
        if self._bank is not None:
            updates[BANK.name] = self._bank.collect()
        if self._cache is not None:
            updates[CACHE.name] = self._cache.collect()
        return updates
