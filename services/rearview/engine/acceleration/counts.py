"""How many calls of networks ran accelerated, and how many did not."""

from __future__ import annotations

from dataclasses import dataclass

__all__ = ["Counts"]


@dataclass(slots=True)
class Counts:
    """Calls since the start. One thread writes it, others may read it."""

    accelerated: int = 0
    eager: int = 0

    def count(self, *, accelerated: bool) -> None:
        """One call more."""
        if accelerated:
            self.accelerated += 1
        else:
            self.eager += 1

    @property
    def share(self) -> float:
        """Of calls that were accelerated."""
        return self.accelerated / max(1, self.accelerated + self.eager)
