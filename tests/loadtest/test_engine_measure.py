"""One cell of the engine's benchmark: every frame comes back, its pictures are compared, faults show."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from rearview.contract.frame import LATENT
from rearview.engine.engine import Order
from rearview.engine.networks.model import DiffusionModel, Forward

from loadtest import engine_measure
from loadtest.accelerators import Accelerators
from loadtest.engine_cells import METHODS, Bench, Cell, specs
from loadtest.engine_checks import Check, Reference, checked_sessions, tolerance
from loadtest.engine_loop import Frames, Loop, percentile
from loadtest.engine_measure import measure, opened
from loadtest.engine_models import SIZES

pytestmark = [pytest.mark.unit, pytest.mark.timeout(200)]

SMOKE = SIZES["smoke"]
FRAMES = Frames(SMOKE.pixels)


@pytest.fixture(scope="module")
def bench() -> Bench:
    torch.set_num_threads(1)
    return Bench(SMOKE, torch.device("cpu"), torch.float32, 1e9)


@pytest.fixture(scope="module")
def reference(bench: Bench) -> Reference:
    return Reference(bench, FRAMES)


@pytest.mark.parametrize("method", METHODS)
def test_every_method_gives_the_plain_paths_pictures(bench: Bench, reference: Reference, method: str) -> None:
    measured = measure(bench, Cell(method, 2, 2), FRAMES, reference, 3)
    assert measured.check.problem == ""
    assert measured.check.max_levels <= (8 if method in ("streamv2v", "both") else 1)
    assert measured.frames == 6
    assert measured.is_warm
    assert measured.rows_per_forward == 2.0
    assert 0 < measured.latency_p50_ms <= measured.latency_p95_ms
    assert (measured.window_ms is not None) == (method in ("live2diff", "both"))
    assert (measured.session_mib > 0) == (method not in ("plain", "adapters"))
    assert (measured.idle_share, measured.accelerated_share) == (None, None)


def test_stream_batch_order_fills_a_forward_with_one_session(bench: Bench, reference: Reference) -> None:
    measured = measure(bench, Cell("plain", 3, 1, Order.STREAM_BATCH), FRAMES, reference, 3)
    assert measured.rows_per_forward == 3.0
    assert measured.check.problem == ""


def test_one_row_at_a_time_is_one_row_at_a_time(bench: Bench, reference: Reference) -> None:
    measured = measure(bench, Cell("plain", 0, 4, max_batch=1), FRAMES, reference, 2)
    assert measured.rows_per_forward == 1.0
    assert measured.check.problem == ""


def test_the_share_of_the_bound_is_of_what_a_frame_takes(bench: Bench, reference: Reference) -> None:
    cell = Cell("streamv2v", 2, 2)
    measured, work = measure(bench, cell, FRAMES, reference, 1), bench.networks().work
    assert measured.share_of_bound == pytest.approx(measured.fps * work.of_frame(2, banked=True) / 1e9)


def test_on_schedule_frames_come_neither_earlier_nor_later(bench: Bench, reference: Reference) -> None:
    cell = Cell("plain", 1, 1, paced_fps=4.0)
    measured = measure(bench, cell, FRAMES, reference, 4)
    assert 2.5 < measured.fps < 6.0
    assert measured.latency_p50_ms < 250.0


def test_a_cell_runs_compiled_and_says_so(bench: Bench, reference: Reference) -> None:
    networks = bench.networks()
    compiled = Accelerators(networks.model, "eager")
    own = Bench(
        SMOKE, bench.device, bench.dtype, 1e9, {(False, False): replace(networks, accelerators=compiled)}
    )
    measured = measure(own, Cell("plain", 2, 2, accelerator="compiled"), FRAMES, reference, 2)
    assert measured.accelerated_share == 1.0
    assert measured.check.problem == ""
    made = compiled.use("compiled").made
    assert {"unet 2", "encode 2", "decode 2"} <= set(made)
    assert len(set(made)) == len(made)
    compiled.use("eager")


def test_a_warm_up_goes_on_while_something_is_new(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    running, rounds = Accelerators(bench.networks().model).use("eager"), list[int]()

    def answers(self: Loop, count: int) -> list[Any]:
        rounds.append(count)
        running.made.extend(["one more"] * (len(rounds) < 7))
        return []

    monkeypatch.setattr(Loop, "answers", answers)
    loop = Loop.__new__(Loop)
    assert engine_measure._warm_up(loop, running, Cell("plain", 1, 1)) == (7, True)
    running.made.clear(), rounds.clear()
    assert engine_measure._warm_up(loop, running, Cell("streamv2v", 1, 1)) == (10, True)
    rounds.clear()
    monkeypatch.setattr(engine_measure, "MOST_ROUNDS", 5)
    assert engine_measure._warm_up(loop, running, Cell("plain", 1, 1)) == (5, False)


def test_sessions_that_leak_into_each_other_are_a_problem(
    bench: Bench, reference: Reference, monkeypatch: pytest.MonkeyPatch
) -> None:
    model, cell = bench.networks().model, Cell("plain", 2, 3)
    honest = DiffusionModel.forward

    def leaking(self: DiffusionModel, rows: Any, views: Any) -> Forward:
        forward = honest(self, rows, views)
        if LATENT not in forward.outputs[0]:
            return forward
        mean = torch.stack([planes[LATENT] for planes in forward.outputs]).mean(0)
        return Forward([{LATENT: planes[LATENT] + 0.1 * mean} for planes in forward.outputs], forward.updates)

    assert measure(bench, cell, FRAMES, reference, 2).check.problem == ""
    monkeypatch.setattr(type(model), "forward", leaking)
    assert "deviate from the plain path" in measure(bench, cell, FRAMES, reference, 2).check.problem


def test_a_bank_of_another_frame_is_a_problem(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    """What a session remembers shows in its pictures, so that a wrong past is seen."""
    cell, plain = Cell("streamv2v", 2, 1), Cell("plain", 2, 1)
    loop = opened(bench, plain, FRAMES)
    answers = loop.answers(6)
    loop.end()
    assert "deviate" in Reference(bench, FRAMES).check(cell, answers).problem


def test_a_failed_forward_ends_a_cell(
    bench: Bench, reference: Reference, monkeypatch: pytest.MonkeyPatch
) -> None:
    cell = Cell("plain", 1, 1)
    bench.costs(cell)

    def failing(self: DiffusionModel, rows: Any, views: Any) -> Forward:
        raise RuntimeError("out of memory")

    monkeypatch.setattr(DiffusionModel, "forward", failing)
    with pytest.raises(RuntimeError, match="forward has failed"):
        measure(bench, cell, FRAMES, reference, 1)


def test_a_session_opens_in_the_slot_of_one_that_ended(bench: Bench) -> None:
    cell = Cell("live2diff", 1, 1)
    loop = opened(bench, cell, FRAMES)
    loop.answers(9)
    loop.end()
    with pytest.raises(StopIteration):
        loop.answers(1)
    assert loop._engine.sessions == ()
    again = engine_measure._loop(loop._engine, cell, bench, FRAMES)
    again.open()
    assert [answer.ordinal for answer in again.answers(9)] == list(range(9))
    again.end()


def test_flat_pictures_and_deviating_ones_are_problems() -> None:
    good = Check(4, 0.1, 1, 40.0, 0.5, 1)
    assert good.problem == ""
    assert "0.7 levels RMS" in replace(good, rms_levels=0.7).problem
    assert "2 at most" in replace(good, max_levels=2).problem
    assert "says little" in replace(good, contrast_levels=0.7).problem
    assert replace(good, contrast_levels=None).problem == ""


def test_half_precision_may_deviate_and_float32_hardly_may() -> None:
    plain, cached = Cell("plain", 2, 1), Cell("live2diff", 2, 1, storage="float8_e4m3fn")
    assert tolerance(plain, torch.float32).level == 1
    assert tolerance(plain, torch.float16).rms == 3.0 < tolerance(plain, torch.bfloat16).rms
    assert tolerance(cached, torch.float16).rms == tolerance(cached, torch.float32).rms == 8.0


def test_first_and_last_sessions_are_compared() -> None:
    assert checked_sessions(Cell("plain", 1, 16)) == ("s0", "s15")
    assert checked_sessions(Cell("plain", 1, 1)) == ("s0",)
    assert len(specs(Cell("plain", 1, 16), SMOKE)) == 16


@pytest.mark.parametrize(("percent", "value"), [(50, 2.0), (95, 4.0), (0, 1.0)])
def test_percentiles_are_measured_values(percent: float, value: float) -> None:
    assert percentile([4.0, 1.0, 3.0, 2.0], percent) == value
