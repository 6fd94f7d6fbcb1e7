"""How large a picture is."""

from __future__ import annotations

from typing import NamedTuple

__all__ = ["NO_SIZE", "Size"]


class Size(NamedTuple):
    """Pixels of a picture."""

    width: int
    height: int

    @property
    def pixels(self) -> int:
        """All of them."""
        return self.width * self.height


NO_SIZE = Size(0, 0)
"""Where nobody has said one."""
