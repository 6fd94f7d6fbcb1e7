"""How many GPUs for so many streams: a curve row by row, then a fleet session by session."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

from rearview.control.scaling import Figures
from rearview.errors import ConfigError
from rearview.planning.costs import DeviceCost
from rearview.planning.curves import Curve, fit
from rearview.planning.fleet import Fleet
from rearview.planning.policies import Ours
from rearview.planning.simulation import Conditions, Result, simulate
from rearview.planning.streams import Streams
from rearview.planning.traces import trace

__all__ = ["TARGET", "Answer", "Goal", "Question", "figures_of", "size", "spark", "start_of"]

TARGET = 0.9
"""Of what a replica takes within the goal, what scaling aims at: a tenth is left for chance."""


@dataclass(frozen=True, slots=True)
class Goal:
    """What sessions are to have."""

    attainment: float = 0.99
    play_ratio: float = 0.995
    refused: float = 0.02
    """Of those who ask, at most."""


@dataclass(frozen=True, kw_only=True)
class Question:
    """Of whom there are how many, on what."""

    device: DeviceCost
    streams: Streams
    peak: int
    """Streams at a time, where there are most."""
    trace: str = "steady"
    hours: float = 24.0
    life_s: float = 1800.0
    slots: int = 16
    spares: int = 0
    max_load: float | None = None
    """The deployment's own limit; the goal's is another."""
    gpus: int = 4096
    """There are no more."""
    goal: Goal = Goal()
    conditions: Conditions = field(default_factory=Conditions)


@dataclass(frozen=True)
class Answer:
    """What was found."""

    question: Question
    curve: Curve
    per_gpu: int
    """Streams that one GPU takes within the goal."""
    result: Result

    @property
    def gpus(self) -> int:
        """The most that there were at a time."""
        return self.result.peak_replicas

    @property
    def is_met(self) -> bool:
        """Whether those who were admitted had what they are to have, and few were refused."""
        result, goal = self.result, self.question.goal
        is_good = result.attainment >= goal.attainment and result.play_ratio >= goal.play_ratio
        return is_good and result.refused_share <= goal.refused

    @property
    def saved_share(self) -> float:
        """Of the GPU hours of a replica for each stream, which runs as long as its stream."""
        stream_hours = self.result.session_s / 3600
        return 1 - self.result.gpu_hours / stream_hours if stream_hours else 0.0


def size(question: Question, *, seconds: float = 10.0, rounds: int = 2) -> Answer:
    """Play it. `seconds`, `rounds`: of each row-accurate run. Raises ConfigError where not even one stream
    on a GPU of its own has what it is to have.
    """
    streams, goal = question.streams, question.goal
    curve = fit(question.device, streams, seconds=seconds, rounds=rounds, most=question.slots)
    per_gpu = min(question.slots, curve.most(goal.attainment, goal.play_ratio))
    share = streams.share(question.device)
    if question.max_load is not None:
        per_gpu = min(per_gpu, int(question.max_load / share + 1e-9))
    if not per_gpu:
        alone = curve.at(1)
        raise ConfigError(
            f"no GPU takes even one of these streams: alone, {alone.attainment:.0%} of its pictures are there"
            f" within {1e3 * streams.slo_s:g} ms (95 % within {1e3 * alone.age_s:.0f} ms), at {share:.0%} of"
            " the GPU's time; ask for fewer steps, smaller pictures, fewer frames or a longer SLO"
        )
    wanted = trace(question.trace, question.peak, duration_s=question.hours * 3600, life_s=question.life_s)
    asked = streams.asked((per_gpu + 0.5) * share)
    fleet = Fleet(question.device.frame(streams.steps), asked, question.slots, question.gpus)
    policy = Ours(figures_of(question, per_gpu))
    at_start = start_of(wanted.at_start, per_gpu, question.spares, question.gpus)
    result = simulate(wanted, policy, fleet, curve, question.conditions, at_start)
    return Answer(question, curve, per_gpu, result)


def figures_of(question: Question, per_gpu: int) -> Figures:
    """What scaling is told, where a replica takes so many streams within the goal."""
    share = question.streams.share(question.device)
    return Figures(
        max_replicas=question.gpus,
        spares=question.spares,
        target_share=TARGET * per_gpu * share,
        max_share=(per_gpu + 0.5) * share,
        slots=question.slots,
        frame_age_slo_s=question.streams.slo_s,
        node_s=question.conditions.time_to_capacity_s,
        hold_s=300.0,
    )


def start_of(sessions: int, per_gpu: int, spares: int, gpus: int) -> int:
    """Replicas for those who are there from the start, at the share that scaling aims at."""
    return min(gpus, max(1, -int(-sessions // (TARGET * per_gpu))) + spares)


def spark(values: Sequence[float], width: int = 60) -> str:
    """A line of bars, each the most of its part; the highest is the highest value."""
    if not values or max(values) <= 0:
        return ""
    most, bars = max(values), "▁▂▃▄▅▆▇█"
    count = min(width, len(values))
    parts = [values[n * len(values) // count : (n + 1) * len(values) // count] for n in range(count)]
    return "".join(bars[min(7, int(8 * max(part) / most))] for part in parts)
