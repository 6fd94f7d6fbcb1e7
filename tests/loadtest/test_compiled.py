"""What the bench of compiled networks compares."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import pytest
from rearview.config import load_config
from rearview.contract.session import SessionSpec
from rearview.contract.settings import Settings
from rearview.engine.engine import Engine
from rearview.replica.build import build_engine

from loadtest import compiled
from loadtest.compiled import Arm, Rates, figures, measure

pytestmark = pytest.mark.unit


def engine() -> Engine:
    config = load_config({"model": {"checkpoint": "pocket", "width": 64, "height": 64, "dtype": "float32"}})
    return build_engine(config, config.spans[0])


def sessions(count: int) -> list[SessionSpec]:
    spec = SessionSpec("", 64, 64, 2, Settings("oil painting", steps=2))
    return [replace(spec, session_id=str(number)) for number in range(count)]


def test_every_frame_of_every_session_is_played_and_nothing_stays() -> None:
    own, specs = engine(), sessions(2)
    rates = measure({False: own, True: own}, specs, frames=2, rounds=2)
    assert len(rates.eager) == len(rates.compiled) == 2
    assert min(*rates.eager, *rates.compiled) > 0
    assert own.sessions == ()
    own.check_integrity()


def test_both_take_turns_at_going_first(monkeypatch: pytest.MonkeyPatch) -> None:
    own = engine()
    other = Engine(own.span, own._model, own._memory, own._scheduler)
    asked: list[bool] = []

    def rate(asked_for: Engine, specs: Sequence[SessionSpec], frames: int) -> float:
        asked.append(asked_for is other)
        return 10.0 + 5.0 * asked[-1]

    monkeypatch.setattr(compiled, "_rate", rate)
    rates = measure({False: own, True: other}, sessions(1), frames=1, rounds=3)
    assert asked == [False, True, True, False, False, True]
    assert rates == Rates([10.0] * 3, [15.0] * 3)
    assert rates.ratio == 1.5


def test_figures_tell_both_and_their_ratio() -> None:
    told = figures({Arm(4, banked=True): Rates([10.0, 20.0, 30.0], [20.0, 30.0, 30.0])})
    assert [(each.value, each.unit) for each in told] == [(20.0, "FPS"), (30.0, "FPS"), (1.5, "x")]
    assert {each.setting for each in told} == {"pocket 256x256, 2 steps, feature bank, 4 sessions"}
