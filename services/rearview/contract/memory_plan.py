"""What a replica's memory goes to, worked out before it is taken: whether all fits, and how many slots do.

Parts are of two sorts. What is *certain* (weights, pools) decides whether a start is refused. What is
*estimated* (graphs, and what forwards take while they run, where the device does not say) only makes
`slots: auto` careful: an estimate that is too high must not refuse a start that would have worked.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field

from rearview.errors import ConfigError

__all__ = [
    "AUTO_SHARE",
    "DEFAULT_SLOTS",
    "MOST_AUTO_SLOTS",
    "Budget",
    "MemoryPlan",
    "Part",
    "plan_memory",
    "told",
    "workspace_bytes",
]

DEFAULT_SLOTS = 16
"""Where nobody says how much memory there is; and the most that `auto` takes of a host's memory, which others
want too."""
MOST_AUTO_SLOTS = 64
"""Of a device's: no replica that was measured has the time for more live sessions than that."""
UNITS = (("GiB", 2**30), ("MiB", 2**20), ("KiB", 2**10))
AUTO_SHARE = 0.9
"""Of the memory that a replica may have, what `auto` gives away: the rest is for what nobody counts."""


@dataclass(frozen=True, slots=True)
class Budget:
    """The memory that a replica may have."""

    where: str
    """The device, as people call it."""
    num_bytes: int
    """0: it is not known."""
    own_bytes: int
    """The part of it that is for one replica, where others have the rest. `auto` takes of this; what is
    certain not to fit does not fit even into all of it."""
    graph_bytes: int = 0
    """To be left for forwards that are captured (CUDA graphs). If there is less, fewer are."""
    most_slots: int = MOST_AUTO_SLOTS
    """That `auto` may take."""


@dataclass(frozen=True, slots=True)
class Part:
    """Something that takes memory whatever the number of sessions."""

    name: str
    num_bytes: int
    is_certain: bool = True


@dataclass(frozen=True, slots=True)
class MemoryPlan:
    """What goes where. As a text: one line."""

    span: str
    budget: Budget
    parts: Sequence[Part]
    slot: Mapping[str, int] = field(default_factory=dict)
    """Bytes of a session, by what it remembers."""
    slots: int = DEFAULT_SLOTS

    @property
    def slot_bytes(self) -> int:
        """Of one session."""
        return sum(self.slot.values())

    @property
    def certain_bytes(self) -> int:
        """Of all that is sure to be taken."""
        return self.slots * self.slot_bytes + sum(part.num_bytes for part in self.parts if part.is_certain)

    @property
    def num_bytes(self) -> int:
        """Of everything."""
        return self.slots * self.slot_bytes + sum(part.num_bytes for part in self.parts)

    def __str__(self) -> str:
        of = f" of {told(self.budget.num_bytes)}" if self.budget.num_bytes else ""
        return f"{self.span}: {told(self.num_bytes)}{of} ({self.budget.where}): {self.terms(self.parts)}"

    def terms(self, parts: Iterable[Part]) -> str:
        """These parts and the slots, in words."""
        words = [
            f"{part.name} {'' if part.is_certain else 'about '}{told(part.num_bytes)}"
            for part in parts
            if part.num_bytes
        ]
        words.append(f"{self.slots} {'slot' if self.slots == 1 else 'slots'}")
        if self.slot_bytes:
            kinds = [f"{name} {told(num_bytes)}" for name, num_bytes in self.slot.items() if num_bytes]
            words[-1] += f" of {told(self.slot_bytes)} ({', '.join(kinds)})"
        return ", ".join(words)


def plan_memory(
    span: str, budget: Budget, parts: Sequence[Part], slot: Mapping[str, int], slots: int | None
) -> MemoryPlan:
    """The plan of a replica. `slot`: bytes of a session by what it remembers; `slots`: None is `auto`, from
    one to `budget.most_slots`. Raises ConfigError with the sum if what is certain does not fit.
    """
    if budget.graph_bytes:
        parts = [*parts, Part("graphs", budget.graph_bytes, is_certain=False)]
    number = _auto(budget, parts, sum(slot.values())) if slots is None else slots
    plan = MemoryPlan(span, budget, parts, slot, number)
    if budget.num_bytes and plan.certain_bytes > budget.num_bytes:
        raise ConfigError(_refusal(plan))
    return plan


def workspace_bytes(measured: Iterable[Mapping[int, int]], samples: int) -> int:
    """Memory of the largest forward of so many samples. `measured`: for each kind of forward, bytes by
    samples. A size that was not measured lies on the line through the two largest that were, or takes its
    share of the only one; what costs the same for every size is in both.
    """
    return max((_at(samples, known) for known in measured if known), default=0)


def _at(samples: int, known: Mapping[int, int]) -> int:
    sizes = sorted(known)
    if samples <= sizes[-1]:
        return known[next(size for size in sizes if size >= samples)]
    if len(sizes) == 1:
        return known[sizes[0]] * samples // sizes[0]
    low, high = sizes[-2:]
    slope = max(0, known[high] - known[low]) / (high - low)
    return int(known[high] + slope * (samples - high))


def _auto(budget: Budget, parts: Sequence[Part], slot_bytes: int) -> int:
    if not budget.num_bytes:
        return DEFAULT_SLOTS
    room = int(AUTO_SHARE * budget.own_bytes) - sum(part.num_bytes for part in parts)
    return max(1, min(budget.most_slots, room // slot_bytes if slot_bytes else budget.most_slots))


def _refusal(plan: MemoryPlan) -> str:
    certain = [part for part in plan.parts if part.is_certain]
    rest = plan.budget.num_bytes - sum(part.num_bytes for part in certain)
    if rest < 0:
        remedy = "Without any session: take a smaller model, a narrower model.dtype, or more memory"
    elif rest < plan.slot_bytes:
        remedy = (
            "Not one slot fits: lower model.width and model.height, model.max_steps, or what is remembered"
        )
    else:
        number = rest // plan.slot_bytes
        fitting = f"{number} {'slot' if number == 1 else 'slots'} would fit"
        remedy = f"{fitting}: lower slots of the span, or set slots: auto"
    return (
        f"span {plan.span} needs {told(plan.certain_bytes)} of memory, and {plan.budget.where} has"
        f" {told(plan.budget.num_bytes)}: {plan.terms(certain)}. {remedy}"
    )


def told(num_bytes: int) -> str:
    """As people read it."""
    unit, size = next((each for each in UNITS if num_bytes >= 0.1 * each[1]), UNITS[-1])
    number = num_bytes / size
    return f"{number:.{0 if number >= 100 else 2}f}".removesuffix(".00") + f" {unit}"
