"""What the bench of the engine's own cost counts, and what it leaves out."""

from __future__ import annotations

import time
from collections.abc import Callable

import pytest
from rearview.engine.networks.denoise import Denoiser
from rearview.engine.networks.model import NullModel

from loadtest import host_time
from loadtest.host_time import Arm, Cost, Loop, Stopwatch, Work, arms, figures, measure

pytestmark = pytest.mark.unit


@pytest.mark.parametrize("memory", ["plain", "bank", "cache"])
def test_every_memory_runs_and_its_own_share_is_told(memory: str) -> None:
    cost = measure(Arm(memory, 3, 3), rows=60, rounds=2)
    assert cost.rows >= 120
    assert 1.0 < cost.rows_per_forward <= 9
    assert 0.0 < cost.memory_us < cost.row_us


@pytest.mark.parametrize("work", Work)
def test_every_kind_of_work_runs(work: Work) -> None:
    assert measure(Arm("plain", 3, 3, work=work), rows=60, rounds=1).rows >= 60


def test_of_the_denoiser_all_but_the_call_of_the_unet_is_counted(monkeypatch: pytest.MonkeyPatch) -> None:
    def slow(honest: Callable[..., object]) -> Callable[..., object]:
        def spends(*arguments: object) -> object:
            until_s = time.thread_time() + 0.005
            while time.thread_time() < until_s:
                pass
            return honest(*arguments)

        return spends

    arm = Arm("plain", 2, 2, work=Work.FIXED)
    monkeypatch.setattr(host_time, "_idle_call", slow(host_time._idle_call))
    cost = measure(arm, rows=40, rounds=1)
    assert cost.row_us < 1e6 * 0.005 / cost.rows_per_forward
    monkeypatch.setattr(Denoiser, "__call__", slow(Denoiser.__call__))
    cost = measure(arm, rows=40, rounds=1)
    assert cost.row_us > 1e6 * 0.005 / cost.rows_per_forward


def test_the_forward_is_not_counted(monkeypatch: pytest.MonkeyPatch) -> None:
    honest = NullModel.forward
    spent: list[float] = []

    def slow(self: NullModel, *arguments: object) -> object:
        until_s = time.thread_time() + 0.005
        while time.thread_time() < until_s:
            pass
        spent.append(0.005)
        return honest(self, *arguments)  # type: ignore[arg-type]

    monkeypatch.setattr(NullModel, "forward", slow)
    cost = measure(Arm("plain", 2, 2), rows=40, rounds=1)
    assert cost.row_us < 1e6 * 0.005 / cost.rows_per_forward


def test_idle_sessions_send_nothing_and_active_ones_keep_their_frames_waiting() -> None:
    loop = Loop(Arm("plain", 6, 2, tenants=6))
    loop.run(50)
    assert set(loop.in_flight) == {f"{number:032x}" for number in range(2)}
    assert set(loop.in_flight.values()) == {host_time.WAITING}
    assert len(loop.engine.sessions) == 6


def test_a_stopwatch_counts_what_raises_too() -> None:
    watch = Stopwatch()
    with pytest.raises(ZeroDivisionError):
        watch.around(lambda: 1 // 0)()
    assert watch.spent_ns > 0


def test_the_figures_have_one_target_and_name_what_they_depend_on() -> None:
    found = list(figures([(arm, Cost(49.0, 1.0, 10, 2.0)) for arm in arms([1, 64])]))
    assert [figure.target for figure in found if figure.target is not None] == [50.0]
    assert len({(figure.what, figure.setting) for figure in found}) == len(found)
    assert all(figure.met in (None, True) for figure in found)
