"""Who is alive: a verdict in time on whoever stops or hangs, and none on a machine that is merely busy."""

from __future__ import annotations

import threading
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule
from rearview.contract.beat import BEAT_S, Beat, Cause, Work
from rearview.control.liveness import TICK_S, Attention, Dead, Doubted, Judge, Limits, Verdict
from rearview.engine.rows import Running
from rearview.machine import run_delays_s, this_machine
from rearview.replica.pulse import Starvation, Vitals

pytestmark = pytest.mark.unit

LIMITS = Limits()
IDLE = Beat(alive=True, work=None)
GRAIN_S = 0.05
"""A step of virtual time."""
EPSILON_S = 1e-6
WAKES_S = BEAT_S + TICK_S + 2 * GRAIN_S
"""What a verdict may come late by: the beat before, the look after, and two steps of this clock."""


def working(busy_s: float, expected_s: float | None = 0.01) -> Beat:
    return Beat(alive=True, work=Work("denoise-0", 2, busy_s, expected_s))


def listening(*, linked: bool = True) -> Judge:
    judge = Judge(0.0)
    judge.meet("a", 0.0)
    if linked:
        judge.linked("a", 0.0)
    return judge


def ticks(judge: Judge, upto_s: float, from_s: float = 0.0) -> list[tuple[float, Verdict]]:
    """Looks on time; every verdict and when it was passed."""
    passed: list[tuple[float, Verdict]] = []
    for number in range(1, round((upto_s - from_s) / TICK_S) + 1):
        now = from_s + number * TICK_S
        passed += ((round(now, 3), verdict) for verdict in judge.tick(now))
    return passed


def test_who_falls_silent_is_doubted_first_and_dead_then() -> None:
    judge = listening()
    assert [verdict for _, verdict in ticks(judge, 0.4)] == []
    assert judge.is_trusted("a")
    passed = ticks(judge, 2.0, from_s=0.4)
    assert [verdict for _, verdict in passed] == [Doubted("a"), Dead("a", Cause.SILENT)]
    assert passed[0][0] <= LIMITS.doubt_s + 2 * TICK_S
    assert passed[1][0] <= LIMITS.silence_s + 2 * TICK_S
    assert not judge.is_trusted("a")
    assert judge.is_dead("a")


def test_who_speaks_again_in_time_is_trusted_again() -> None:
    judge = listening()
    ticks(judge, 0.8)
    assert not judge.is_trusted("a")
    assert judge.heard("a", IDLE, 0.85) == ()
    assert judge.is_trusted("a")


def test_the_dead_stay_dead_whatever_they_say() -> None:
    judge = listening()
    ticks(judge, 2.0)
    assert judge.heard("a", IDLE, 2.0) == ()
    judge.forget("a")
    assert not judge.is_trusted("a")


def test_who_was_never_heard_is_doubted_and_not_dead() -> None:
    judge = listening(linked=False)
    assert [verdict for _, verdict in ticks(judge, 60.0)] == [Doubted("a")]
    judge.linked("a", 60.0)
    judge.heard("a", IDLE, 60.0)
    assert judge.is_trusted("a")


def test_who_cannot_be_reached_is_doubted_once() -> None:
    judge = listening(linked=False)
    assert judge.unreachable("a") == (Doubted("a"),)
    assert judge.unreachable("a") == ()


def test_who_never_speaks_is_not_judged() -> None:
    judge = listening()
    judge.forget("a")
    assert ticks(judge, 60.0) == []
    assert judge.is_trusted("a")
    assert judge.heard("a", working(99.0), 60.0) == ()


def test_an_engine_that_has_ended_is_dead_at_once() -> None:
    assert listening().heard("a", Beat(alive=False, work=None), 0.1) == (Dead("a", Cause.BROKEN),)


@pytest.mark.parametrize(
    ("expected_s", "allowed_s"),
    [(0.0, LIMITS.forward_s), (0.02, LIMITS.forward_s), (0.5, 5.0), (None, LIMITS.unknown_s)],
)
def test_a_forward_may_take_many_times_its_cost_and_no_more(
    expected_s: float | None, allowed_s: float
) -> None:
    judge = listening()
    assert Dead("a", Cause.HUNG) not in judge.heard("a", working(allowed_s, expected_s), 0.1)
    assert judge.heard("a", working(allowed_s + 0.01, expected_s), 0.2) == (Dead("a", Cause.HUNG),)


def test_a_forward_that_is_slow_keeps_new_sessions_away() -> None:
    judge = listening()
    assert judge.heard("a", working(0.6), 0.1) == (Doubted("a"),)
    assert judge.heard("a", working(0.8), 0.3) == ()
    assert judge.heard("a", working(0.0), 0.5) == ()
    assert judge.is_trusted("a")
    assert judge.heard("a", working(6.0, None), 0.7) == (), "it may be loading kernels"


@pytest.mark.parametrize("late_s", [0.5, 3.0, 600.0])
def test_a_judge_that_did_not_get_to_look_blames_itself(late_s: float) -> None:
    judge = listening()
    judge.heard("a", IDLE, 0.0)
    assert judge.tick(TICK_S + late_s) == ()
    assert judge.heard("a", IDLE, TICK_S + late_s) == ()
    assert ticks(judge, late_s + 0.5, from_s=TICK_S + late_s) == []


def test_lateness_of_every_look_makes_the_limit_grow_as_much() -> None:
    judge, now, died_s = listening(), 0.0, 0.0
    while not died_s:
        now += 3 * TICK_S
        if Dead("a", Cause.SILENT) in judge.tick(now):
            died_s = now
    assert died_s == pytest.approx(3 * LIMITS.silence_s, abs=6 * TICK_S)


def test_attention_counts_no_more_than_a_look() -> None:
    attention = Attention(0.2, 10.0)
    assert attention.at(10.1) == pytest.approx(0.1)
    assert attention.look(10.2) == pytest.approx(0.0)
    assert attention.look(13.4) == pytest.approx(3.0)
    assert attention.at(13.4) == pytest.approx(0.4)
    assert attention.at(99.0) == pytest.approx(0.6)


@dataclass
class Engine:
    """What `Vitals` reads of a runner."""

    alive: bool = True
    running: Running | None = None
    busy_since_s: float | None = None

    def begin(self, now: float, expected_s: float | None) -> None:
        self.running, self.busy_since_s = Running("denoise-0", 1, expected_s), now

    def end(self) -> None:
        self.running = self.busy_since_s = None


def test_a_pulse_counts_what_one_forward_takes_and_not_those_before() -> None:
    engine = Engine()
    vitals = Vitals(engine, 0.0, Starvation(dict))
    assert vitals.take(0.2).work is None
    busy: list[float] = []
    for number in range(10):
        engine.begin(0.35 + 0.2 * number, 0.01)
        work = vitals.take(0.4 + 0.2 * number).work
        assert work is not None
        busy.append(work.busy_s)
    assert busy == pytest.approx([0.05] * 10)
    later = [vitals.take(2.4 + 0.2 * number).work for number in range(5)]
    assert [work.busy_s for work in later if work] == pytest.approx([0.25, 0.45, 0.65, 0.85, 1.05])
    engine.running = None
    assert vitals.take(3.4).work == Work("", 0, pytest.approx(1.25), None)


def test_time_in_which_the_engine_wanted_a_processor_and_had_none_is_not_its_own() -> None:
    """Fifteen processes on two cores: the thread that beats is woken at once, and the forward waits."""
    delays_s, engine = {1: 5.0, 2: 0.5}, Engine()
    vitals = Vitals(engine, 0.0, Starvation(lambda: dict(delays_s)))
    engine.begin(0.15, 0.01)
    for number in range(1, 20):
        beat = vitals.take(0.2 * number)
        assert beat.work is not None
        assert not LIMITS.is_hung(beat.work)
        delays_s[2] += 0.17  # It ran for 0.03 s.
    assert beat.work.busy_s == pytest.approx(0.05 + 18 * 0.03)
    delays_s[3] = 0.1  # A thread that is new; and nobody waits any more: the forward hangs.
    assert [LIMITS.is_hung(vitals.take(0.2 * number).work) for number in range(20, 24)] == [False] * 2 + [
        True
    ] * 2


def test_how_long_threads_waited_is_read_from_the_system(tmp_path: Path) -> None:
    for thread, text in (("7", "100 2500000000 3"), ("8", "nonsense"), ("9", "1 0 1")):
        (tmp_path / thread).mkdir()
        (tmp_path / thread / "schedstat").write_text(text)
    assert run_delays_s(tmp_path) == {7: 2.5, 9: 0.0}
    assert run_delays_s(tmp_path / "none") == {}
    assert threading.get_native_id() in run_delays_s() or not this_machine().has_proc


def test_a_pulse_knows_that_its_process_was_stopped() -> None:
    vitals = Vitals(Engine(), 0.0, Starvation(dict))
    vitals.take(0.2)
    assert not vitals.was_stopped(0.5)
    assert vitals.was_stopped(1.5), "it has just woken, and has not beaten yet"
    vitals.take(1.5)
    vitals.take(1.7)
    assert vitals.was_stopped(1.7), "it has beaten since"
    vitals.take(9.0)
    for number in range(40):
        vitals.take(9.2 + 0.2 * number)
    assert not vitals.was_stopped(17.0)


@dataclass
class Replica:
    """One process: it runs or is stopped, and its engine works, or hangs."""

    engine: Engine = field(default_factory=Engine)
    stopped: bool = False
    next_s: float = 0.0
    ends_s: float | None = None
    """When its forward ends. None: nothing runs, or it hangs."""
    allowed_s: float = 0.0
    """What its forward may take."""
    silent_s: float = 0.0
    """For how long it has been stopped since its last beat, while the judge looked on."""
    unheard_s: float = 0.0
    """The same since the judge last read something of it, which may have lain there."""
    ran_s: float = 0.0
    """For how long its process has run since its forward began."""
    beaten: list[Beat] = field(default_factory=list)
    """On their way to the judge."""

    def __post_init__(self) -> None:
        self.vitals = Vitals(self.engine, 0.0, Starvation(dict))

    def run(self, now: float) -> None:
        if self.stopped:
            return
        self.ran_s += GRAIN_S
        if self.ends_s is not None and now >= self.ends_s:
            self.engine.end()
            self.ends_s = None
        if now >= self.next_s - EPSILON_S:
            self.beaten.append(self.vitals.take(now))
            self.silent_s = 0.0
            self.next_s = now + BEAT_S

    @property
    def hangs(self) -> bool:
        return self.engine.busy_since_s is not None and self.ends_s is None

    @property
    def must_die(self) -> bool:
        """Whether the verdict is overdue."""
        is_hung = self.hangs and not self.stopped and self.ran_s > self.allowed_s + BEAT_S + WAKES_S
        return is_hung or self.unheard_s > LIMITS.silence_s + WAKES_S

    @property
    def may_die(self) -> bool:
        """Whether a verdict may be passed."""
        is_hung = self.hangs and self.ran_s > self.allowed_s - WAKES_S
        return is_hung or self.silent_s > LIMITS.silence_s - WAKES_S


class World(RuleBasedStateMachine):
    """Two replicas and a judge. Each may be stopped, and the machine may stand still."""

    def __init__(self) -> None:
        super().__init__()
        self.now, self.next_look_s, self.judge_is_stopped = 0.0, TICK_S, False
        self.looked_on_s = 0.0
        """Since when the judge was not stopped."""
        self.judge = Judge(0.0)
        self.replicas = {name: Replica() for name in ("a", "b")}
        self.dead: dict[str, Cause] = {}
        for name in self.replicas:
            self.judge.meet(name, 0.0)
            self.judge.linked(name, 0.0)

    @rule(steps=st.integers(1, 30))
    def time_passes(self, steps: int) -> None:
        for _ in range(steps):
            self.now += GRAIN_S
            for replica in self.replicas.values():
                replica.run(self.now)
                if replica.stopped and not self.judge_is_stopped:
                    replica.silent_s += GRAIN_S
                    replica.unheard_s += GRAIN_S
            if not self.judge_is_stopped:
                self.looked_on_s += GRAIN_S
                self.judge_looks()
            self.check()

    @rule(stall_s=st.floats(0.1, 30.0))
    def the_machine_stands_still(self, stall_s: float) -> None:
        self.now += stall_s
        for replica in self.replicas.values():
            if replica.ends_s is not None:
                replica.ends_s += stall_s

    @rule(name=st.sampled_from("ab"), runs=st.booleans())
    def a_process_is_stopped_or_goes_on(self, name: str, runs: bool) -> None:
        replica = self.replicas[name]
        if runs and replica.silent_s <= LIMITS.silence_s - WAKES_S:
            if replica.ends_s is not None and replica.stopped:
                replica.ends_s = max(replica.ends_s, self.now + GRAIN_S)
            replica.stopped = False
        elif not runs:
            replica.stopped = True

    @rule()
    def the_judge_is_stopped(self) -> None:
        self.judge_is_stopped, self.looked_on_s = True, 0.0

    @precondition(lambda self: self.judge_is_stopped)
    @rule()
    def the_judge_goes_on(self) -> None:
        self.judge_is_stopped = False

    @rule(
        name=st.sampled_from("ab"),
        expected_s=st.sampled_from([None, 0.0, 0.01, 0.15]),
        share=st.sampled_from([0.1, 0.5, 0.8, None]),
    )
    def a_forward_begins(self, name: str, expected_s: float | None, share: float | None) -> None:
        """`share`: of what it may take; None, it never ends."""
        replica = self.replicas[name]
        if replica.stopped or replica.engine.busy_since_s is not None:
            return
        replica.engine.begin(self.now, expected_s)
        replica.allowed_s, replica.ran_s = LIMITS.allowed_s(Work("", 1, 0.0, expected_s)), 0.0
        replica.ends_s = None if share is None else self.now + share * (replica.allowed_s - WAKES_S)

    @invariant()
    def check(self) -> None:
        for name, replica in self.replicas.items():
            if name in self.dead:
                assert replica.may_die, f"{self.dead[name]} of {replica}"
                assert not self.judge.is_trusted(name)
            elif self.looked_on_s > WAKES_S:
                assert not replica.must_die, f"no verdict on {replica}"

    def judge_looks(self) -> None:
        if self.now < self.next_look_s - EPSILON_S:
            return
        # After a stop it looks at the clock before it reads what has come meanwhile.
        self.take(self.judge.tick(self.now))
        for name, replica in self.replicas.items():
            for beat in replica.beaten:
                self.take(self.judge.heard(name, beat, self.now))
                replica.unheard_s = 0.0
            replica.beaten.clear()
        self.next_look_s = self.now + TICK_S

    def take(self, verdicts: Sequence[Verdict]) -> None:
        for verdict in verdicts:
            if isinstance(verdict, Dead):
                assert verdict.address not in self.dead, "nobody dies twice"
                self.dead[verdict.address] = verdict.cause


TestWorld = World.TestCase
TestWorld.settings = settings(max_examples=60, stateful_step_count=40, deadline=None, derandomize=True)
