"""The plain way to the next forward: walk all frames, look at all rows. The oracle of the engine's index.

It keeps nothing between two steps but who was served and which groups have waited.
"""

from __future__ import annotations

import heapq
from collections import Counter
from collections.abc import Hashable, Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from math import inf

from rearview.contract.chain import Operator, OperatorKind
from rearview.engine.course import LaterRow
from rearview.engine.memory.compose import Memories
from rearview.engine.networks.model import Model, row_group
from rearview.engine.ready import Order
from rearview.engine.rows import FrameInFlight, Row, row_controls, row_width, window_group
from rearview.engine.scheduler import CostTable
from rearview.engine.sessions import Session
from rearview.engine.windows import Turn

__all__ = ["PlainRule", "PlainScheduler"]


class PlainRule:
    """Walks every frame of every session, each time anew."""

    def __init__(self, model: Model, memory: Memories, costs: CostTable, order: Order) -> None:
        self._model, self._memory, self._costs, self._order = model, memory, costs, order

    def rows(self, sessions: Iterable[Session]) -> Iterator[Row]:
        """The rows that may run, in any company of equal groups."""
        for session in sessions:
            for turn in self._turns(session):
                yield self._row(session, turn)

    def _turns(self, session: Session) -> Iterator[Turn]:
        preceded: set[Operator] = set()
        for turn in session.windows.before_all(session):
            yield turn
            preceded.add(turn.operator)
        for frame in session.frames.values():
            if frame.operator not in preceded:
                found = session.windows.turn(frame, session)
                if found is not None and (found.warms_up or not self._is_held_back(session, frame)):
                    yield found
            preceded.update(session.ordered.intersection(frame.remaining))

    def _is_held_back(self, session: Session, frame: FrameInFlight) -> bool:
        """In stream-batch order step k of frame n waits until frame n + k is encoded: they share forwards."""
        if self._order is Order.BACK_TO_BACK or session.flushes:
            return False
        newest = session.frames.get(frame.ordinal + frame.operator.step)
        if newest is None:  # It has not come yet, or it has left.
            return session.expected <= frame.ordinal + frame.operator.step
        return newest.operator.kind is OperatorKind.ENCODE and frame.operator.kind is OperatorKind.DENOISE

    def _row(self, session: Session, turn: Turn) -> Row:
        last = turn.frames[-1]
        group = self._group(last, last.operator)
        later = tuple(self._later(session, turn))
        row = Row(
            turn.frames,
            last.operator,
            window_group(group) if turn.warms_up else group,
            last.deadline_s
            - sum(self._costs.seconds(one.group, one.width, 0, one.controls) for one in later),
            later=later,
            warms_up=turn.warms_up,
            shadow=turn.shadow,
        )
        writes = self._memory.num_writes(row)
        return replace(row, writes=writes) if writes else row

    def _group(self, frame: FrameInFlight, operator: Operator) -> Hashable:
        return row_group(self._model, self._memory, frame.spec, frame.settings, operator)

    def _later(self, session: Session, turn: Turn) -> Iterator[LaterRow]:
        """What is still before the frames of a row, or before the one that waits for a shadow window."""
        if turn.shadow and turn.waiting is None:
            return
        frame = turn.waiting or turn.frames[-1]
        together = 1 if turn.shadow else len(turn.frames)
        for operator in frame.remaining if turn.shadow else frame.remaining[1:]:
            group = self._group(frame, operator)
            width, controls = row_width(operator, frame.settings), row_controls(operator, frame.settings)
            if frames := session.windows.frames_at(frame, operator):
                yield LaterRow(window_group(group), width * frames, controls * frames)
            else:
                yield LaterRow(group, width * together, controls * together)


class PlainScheduler:
    """Chooses from a list of all ready rows."""

    def __init__(self, costs: CostTable, max_batch: int, max_wait_forwards: int = 8) -> None:
        self.costs, self._max_batch, self._max_wait = costs, max_batch, max_wait_forwards
        self._served: dict[str, float] = {}
        self._level = 0.0
        self._waited: dict[Hashable, int] = {}

    def choose(self, ready: Sequence[Row], now: float) -> list[Row]:
        """The rows of the next forward, all of one group; empty iff `ready` is. Charges their tenants."""
        if not ready:
            self._waited.clear()
            return []
        self._welcome(ready)
        batch = list(ready) if len(ready) == 1 else self._best(ready, now)
        self._charge(batch, ready)
        self._age(ready, batch[0].group)
        return batch

    def _welcome(self, ready: Sequence[Row]) -> None:
        """Tenants that were away, or had nothing left to wish for, go on from the level of the others."""
        owing = {tenant: served for tenant, served in self._served.items() if served > self._level}
        present = {row.frame.spec.tenant for row in ready}
        self._served = {**dict.fromkeys(present, self._level), **owing}

    def _best(self, ready: Sequence[Row], now: float) -> list[Row]:
        head = self._head(ready, now)
        if head.frame.failures:  # It failed before: whoever shared its batch is innocent.
            return [head]
        return self._grow([r for r in ready if r.group == head.group and not r.frame.failures], now)

    def _head(self, ready: Sequence[Row], now: float) -> Row:
        overdue = self._overdue({row.group for row in ready})
        if overdue:
            return self._first([row for row in ready if row.group in overdue])
        head = self._first(ready)
        feeders = [
            row
            for row in ready
            if row.operator.kind is OperatorKind.ENCODE and row.later and row.later[0].group == head.group
        ]
        return self._first(feeders) if feeders and self._is_worth_feeding(head, feeders, ready, now) else head

    def _first(self, rows: Sequence[Row]) -> Row:
        return min(rows, key=lambda row: (self._served[row.frame.spec.tenant], _urgency(row)))

    def _is_worth_feeding(self, head: Row, feeders: Sequence[Row], ready: Sequence[Row], now: float) -> bool:
        """Whether to encode before denoising: what was just encoded joins the forward and spares its own.

        Not if the encoding takes longer than it spares (without a gain from batching), nor if it makes
        `head` late.
        """
        if head.operator.kind is not OperatorKind.DENOISE or head.frame.failures:
            return False
        cost, fed = self.costs.seconds, feeders[: self._max_batch]
        here = _width(row for row in ready if row.group == head.group)
        joining = sum(row.later[0].width for row in fed)
        if here + joining > self._max_batch:
            return False
        encode_s = cost(feeders[0].group, len(fed), drawing_s=self.costs.drawing_s(fed))
        together_s = cost(head.group, here + joining)
        apart_s = cost(head.group, here) + cost(head.group, joining)
        is_late = now + cost(head.group, head.width) > head.due_s
        return encode_s < apart_s - together_s and (is_late or now + encode_s + together_s <= head.due_s)

    def _overdue(self, groups: set[Hashable]) -> Sequence[Hashable]:
        longest_first = sorted(groups, key=lambda group: -self._waited.get(group, 0))
        waited = [self._waited.get(group, 0) for group in longest_first]
        is_due = any(each + i >= self._max_wait for i, each in enumerate(waited))
        is_longest = [group for group, each in zip(longest_first, waited, strict=True) if each == waited[0]]
        return is_longest if is_due and len(groups) > 1 else ()

    def _grow(self, rows: Sequence[Row], now: float) -> list[Row]:
        group, room = rows[0].group, min(self._max_batch, _width(rows))
        candidates = self._in_turn(rows, self.costs.service(group, room) / room)
        head = next(candidates)
        batch, width, writes, controls = [head], head.width, head.writes, head.controls
        drawing_s = self.costs.drawing_s(batch)
        if now + self.costs.seconds(group, width, writes, controls, drawing_s) > head.due_s:
            return [head, *_fitting(candidates, self._best_throughput(group, room) - width)]
        deadlines = {head.later: head.frame.deadline_s}
        wider = Counter(_wider_later(head))
        for row in _fitting(candidates, room - width):
            writes, controls = writes + row.writes, controls + row.controls
            drawing_s += self.costs.drawing_s([row])
            done_s = now + self.costs.seconds(group, width + row.width, writes, controls, drawing_s)
            if done_s > self._earliest_due(deadlines, len(batch), wider):
                break
            batch.append(row)
            width += row.width
            wider.update(_wider_later(row))
            if done_s <= row.due_s:  # Else it is late already and holds nobody back.
                deadlines[row.later] = min(row.frame.deadline_s, deadlines.get(row.later, inf))
        return batch

    def _earliest_due(
        self, deadlines: Mapping[tuple[LaterRow, ...], float], rows: int, wider: Mapping[Hashable, int]
    ) -> float:
        return min(
            deadline_s
            - sum(
                self.costs.seconds(group, rows + wider.get(group, 0), controls=controls)
                for group, _, controls in later
            )
            for later, deadline_s in deadlines.items()
        )

    def _in_turn(self, rows: Sequence[Row], share_s: float) -> Iterator[Row]:
        """`rows` as tenants would get them one by one, each charged `share_s`; urgent ones first inside."""
        queues: dict[str, list[Row]] = {}
        for row in sorted(rows, key=_urgency, reverse=True):
            queues.setdefault(row.frame.spec.tenant, []).append(row)
        turns = [(self._served[name], _urgency(queue[-1]), name) for name, queue in queues.items()]
        heapq.heapify(turns)
        while turns:
            served, _, name = turns[0]
            row = queues[name].pop()
            if queues[name]:
                served += share_s * row.width / row.frame.spec.weight
                heapq.heapreplace(turns, (served, _urgency(queues[name][-1]), name))
            else:
                heapq.heappop(turns)
            yield row

    def _best_throughput(self, group: Hashable, room: int) -> int:
        def rate(rows: int) -> float:
            cost = self.costs.seconds(group, rows)
            return rows / cost if cost else float(rows)

        return max(range(1, room + 1), key=rate)

    def _charge(self, batch: Sequence[Row], ready: Sequence[Row]) -> None:
        writes, width = sum(row.writes for row in batch), _width(batch)
        share_s = self.costs.service(batch[0].group, width, writes) / width
        for row in batch:
            row_s = share_s * row.width + row.controls * self.costs.control_s + self.costs.drawing_s([row])
            self._served[row.frame.spec.tenant] += row_s / row.frame.spec.weight
        taken = {id(row) for row in batch}
        waiting = {row.frame.spec.tenant for row in ready if id(row) not in taken}
        # Where nobody waits nobody was served at another's cost: all are level again.
        self._level = min((self._served[name] for name in waiting), default=max(self._served.values()))

    def _age(self, ready: Sequence[Row], chosen: Hashable) -> None:
        groups = {row.group for row in ready}
        self._waited = {group: self._waited.get(group, 0) + 1 for group in groups if group != chosen}


def _width(rows: Iterable[Row]) -> int:
    return sum(row.width for row in rows)


def _fitting(rows: Iterable[Row], room: int) -> Iterator[Row]:
    """Rows in their order, as far as they fit: a narrow one does not overtake a wide one."""
    for row in rows:
        room -= row.width
        if room < 0:
            return
        yield row


def _wider_later(row: Row) -> Mapping[Hashable, int]:
    """Samples beyond one that its frame's widest later row of a group will be."""
    return {group: width - 1 for group, width, _ in row.later if width > 1}


_Urgency = tuple[bool, float, int, float, str, int]


def _urgency(row: Row) -> _Urgency:
    """What failed first; then what is due first; then the frame that is furthest, so that pictures come
    out one by one; then who has waited longest, so that no session is preferred.
    """
    frame = row.frame
    return (
        not frame.failures,
        row.due_s,
        -frame.position,
        frame.ready_s,
        frame.spec.session_id,
        frame.ordinal,
    )
