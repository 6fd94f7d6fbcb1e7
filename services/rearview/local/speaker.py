"""Which of a service's processes is heard while they start: one at a time, and nothing twice."""

from __future__ import annotations

from rearview.local.places import Place, State

__all__ = ["Speaker"]


class Speaker:
    """The first place that has said something is told of until it is ready or gone; then the next one that
    speaks. All start at once, and what each of them does would flicker.
    """

    def __init__(self) -> None:
        self._place: Place | None = None
        self._text = ""

    def hears(self, place: Place, text: str) -> bool:
        """Whether to pass on what a place says that starts."""
        if self._place is None or self._place.state is not State.STARTING:
            self._place = place
        if place is not self._place or text == self._text:
            return False
        self._text = text
        return True
