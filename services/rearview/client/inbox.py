"""Answers between the server and the user, and the credit that the server has for more. No clock, no I/O.

    server ─► put ─► waiting (at most `window`) ─► take ─► user

A slow reader is bounded twice: the server may send `window` answers more than were taken, and nothing is
read while so many are waiting.
"""

from __future__ import annotations

from collections import deque

from rearview.client.answers import Answer, Dropped, Translated

__all__ = ["ACK_EVERY_ANSWERS", "Inbox"]

ACK_EVERY_ANSWERS = 4
"""A `credit` message is sent after so many answers, so that the server can forget them."""


class Inbox:
    """The waiting answers of one session. Counts are of frames, over all connections."""

    def __init__(self, window: int) -> None:
        if window < 1:
            raise ValueError(f"answer_window must be at least 1, not {window}")
        self._window = window
        self._waiting: deque[Answer] = deque()
        self._taken = 0
        self._told_received, self._told_taken = 0, 0

    def __len__(self) -> int:
        """How many answers are waiting."""
        return len(self._waiting)

    @property
    def has_room(self) -> bool:
        """Whether more may be read from the connection."""
        return len(self._waiting) < self._window

    def put(self, answer: Answer) -> None:
        """Add an answer behind those that wait."""
        self._waiting.append(answer)

    def take(self) -> Answer | None:
        """The oldest waiting answer; None if there is none."""
        if not self._waiting:
            return None
        answer = self._waiting.popleft()
        self._taken += isinstance(answer, Translated | Dropped)
        return answer

    def is_credit_due(self, received_answers: int) -> bool:
        """Whether the server should be told what was received and taken since it last was."""
        return (
            received_answers - self._told_received >= ACK_EVERY_ANSWERS
            or self._taken - self._told_taken >= max(1, self._window // 4)
        )

    def tell_credit(self, received_answers: int) -> int:
        """How many answers in all the server may send. Counts as told, with `received_answers`."""
        self._told_received, self._told_taken = received_answers, self._taken
        return self._taken + self._window
