"""Whether a server that was found away is asked, in virtual time."""

from __future__ import annotations

from dataclasses import dataclass, field

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from rearview.control.circuit import Circuit

pytestmark = pytest.mark.unit

AGAIN_S = 0.5


def test_a_server_that_answers_is_asked() -> None:
    assert not Circuit().is_open
    assert Circuit().probing(1e9) is None
    assert Circuit().answered() == Circuit()


def test_after_a_failure_calls_are_refused_until_a_probe_is_answered() -> None:
    away = Circuit().failed(10.0, AGAIN_S)
    assert away.is_open
    assert away.probing(10.4) is None
    probing = away.probing(10.5)
    assert probing is not None
    assert probing.is_open
    assert not probing.answered().is_open


def test_one_probe_goes_at_a_time() -> None:
    probing = Circuit().failed(10.0, AGAIN_S).probing(11.0)
    assert probing is not None
    assert probing.probing(1e9) is None


def test_calls_that_began_before_put_no_probe_off() -> None:
    away = Circuit().failed(10.0, AGAIN_S)
    assert away.failed(10.4, AGAIN_S) == away
    probing = away.probing(10.5)
    assert probing is not None
    assert probing.failed(10.6, AGAIN_S) == probing


def test_a_probe_that_fails_is_followed_by_another() -> None:
    probing = Circuit().failed(10.0, AGAIN_S).probing(10.5)
    assert probing is not None
    again = probing.probe_failed(11.0, 2.0)
    assert again == Circuit(failures=2, due_s=13.0)


def test_a_call_that_is_answered_late_tells_that_the_server_is_back() -> None:
    probing = Circuit().failed(10.0, AGAIN_S).probing(10.5)
    assert probing is not None
    back = probing.answered()
    assert back.probe_failed(11.0, AGAIN_S) == back == Circuit()


@dataclass
class World:
    """A server that comes and goes, calls under way, and one task that probes."""

    now: float = 0.0
    is_up: bool = True
    circuit: Circuit = field(default_factory=Circuit)
    calls: list[bool] = field(default_factory=list)
    """Under way: whether the server was up when they came."""
    probe: bool | None = None
    """One that is under way."""

    def call(self) -> None:
        if not self.circuit.is_open:
            self.calls.append(self.is_up)

    def end_call(self) -> None:
        if self.calls:
            was_up = self.calls.pop(0)
            answered, failed = self.circuit.answered(), self.circuit.failed(self.now, AGAIN_S)
            self.circuit = answered if was_up else failed

    def tick(self) -> None:
        self.now += 0.3
        probing = self.circuit.probing(self.now)
        if probing is not None:
            assert self.probe is None, "two probes at a time"
            self.circuit, self.probe = probing, self.is_up

    def end_probe(self) -> None:
        if self.probe is not None:
            was_up, self.probe = self.probe, None
            failed = self.circuit.probe_failed(self.now, AGAIN_S)
            self.circuit = self.circuit.answered() if was_up else failed

    def switch(self) -> None:
        self.is_up = not self.is_up

    def settle(self) -> None:
        while self.calls:
            self.end_call()
        self.end_probe()
        self.tick()
        self.end_probe()
        self.tick()
        self.end_probe()


MOVES = ("call", "end_call", "tick", "end_probe", "switch")


@settings(deadline=None, derandomize=True)
@given(st.lists(st.sampled_from(MOVES), max_size=60))
def test_whatever_happens_the_circuit_learns_what_the_server_is(moves: list[str]) -> None:
    world = World()
    for move in moves:
        if move == "tick" and world.probe is not None:
            move = "end_probe"  # The task that probes waits for it.
        getattr(world, move)()
    world.settle()
    world.is_up = True
    world.settle()
    world.settle()
    assert not world.circuit.is_open, "a server that is back is refused"
    world.is_up = False
    world.call()
    world.settle()
    assert world.circuit.is_open, "a server that is away is asked"
