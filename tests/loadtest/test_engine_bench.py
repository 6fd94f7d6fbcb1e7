"""The engine's benchmark: its counts of work, its closed loop, and its answer to pictures that differ."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from rearview.contract.frame import LATENT
from rearview.engine.engine import Order
from rearview.engine.networks.model import Forward

from loadtest import engine_bench
from loadtest.engine_bench import Bench, Cell, cells, drive, main, percentile, specs
from loadtest.engine_models import SIZES, Work, build, count_work
from loadtest.figures import ResultFile

pytestmark = [pytest.mark.unit, pytest.mark.timeout(100)]

CPU = torch.device("cpu")
SMOKE = SIZES["smoke"]


@pytest.fixture(scope="module")
def bench() -> Bench:
    torch.set_num_threads(1)
    return Bench(
        SMOKE, CPU, torch.float32, 2, build(SMOKE, CPU, torch.float32), Work(1.0, 0.5, 2.0, 3.0), 1e9
    )


def test_work_of_stable_diffusion_is_what_is_known_of_it() -> None:
    """Counted on tensors without data: 0.803 TFLOP per row, 0.926 with a bank, TAESD 0.122 + 0.141."""
    meta = torch.device("meta")
    model = build(SIZES["sd15"], meta, torch.float16)
    work = count_work(model, SIZES["sd15"], meta, torch.float16)
    counted = [work.unet, work.unet + work.bank, work.encode, work.decode]
    assert [round(value / 1e12, 3) for value in counted] == pytest.approx(
        [0.803, 0.926, 0.122, 0.141], rel=0.02
    )


def test_work_of_a_frame_counts_every_step_once() -> None:
    work = Work(unet=10.0, bank=2.0, encode=1.0, decode=3.0)
    assert work.of_frame(4, banked=False) == 44.0
    assert work.of_frame(4, banked=True) == 52.0


def test_every_setting_is_measured_once_and_one_step_has_one_order() -> None:
    found = list(cells(SIZES["sd15"], 16))
    assert len(found) == len(set(found)) == 2 * (1 + 3 * 2) * 5
    assert max(cell.sessions for cell in cells(SIZES["sd15"], 4)) == 4


@pytest.mark.parametrize("order", list(Order))
@pytest.mark.parametrize("memory", ["plain", "bank"])
def test_a_cell_brings_every_frame_back_and_fills_its_batches(
    bench: Bench, memory: str, order: Order
) -> None:
    measured = bench.measure(Cell(memory, 2, 3, order))
    assert measured.frames == 3 * bench.frames
    assert 1.0 < measured.rows_per_forward <= (3 if order is Order.BACK_TO_BACK else 6)
    assert 0 < measured.latency_p50_ms <= measured.latency_p95_ms
    seconds = measured.frames / measured.fps
    work = 5.0 + 2 * (1.5 if memory == "bank" else 1.0)
    assert measured.share_of_bound == pytest.approx(measured.frames * work / seconds / 1e9)


def test_one_row_at_a_time_is_one_row_at_a_time(bench: Bench) -> None:
    measured = bench.measure(Cell("plain", 2, 3, Order.BACK_TO_BACK, max_batch=1))
    assert measured.rows_per_forward == 1.0


def test_mixed_sessions_differ_in_everything_that_a_forward_may_mix() -> None:
    mixed = specs(Cell("bank", 0, 16, Order.BACK_TO_BACK), SMOKE)
    assert {spec.settings.steps for spec in mixed} == {1, 2, 3, 4}
    assert len({spec.settings.prompt for spec in mixed}) == len({spec.settings.seed for spec in mixed}) == 16
    assert len({spec.settings.strength for spec in mixed}) > 1


def test_sessions_that_leak_into_each_other_are_found(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    honest = bench.model.forward

    def leaking(rows: Any, view: Any) -> Forward:
        forward = honest(rows, view)
        latents = [planes[LATENT] for planes in forward.outputs]
        mean = torch.stack(latents).mean(0)
        return Forward([{LATENT: latent + 1e-3 * mean} for latent in latents], forward.updates)

    sessions = bench.gap("plain")
    monkeypatch.setattr(bench.model, "forward", leaking)
    assert sessions <= 1e-5 < bench.gap("plain")


def test_a_failed_forward_ends_the_benchmark(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    def failing(rows: Any, view: Any) -> Forward:
        raise RuntimeError("out of memory")

    cell = Cell("plain", 1, 1, Order.BACK_TO_BACK)
    costs = bench._costs(cell, specs(cell, SMOKE)[0])
    monkeypatch.setattr(bench.model, "forward", failing)
    with pytest.raises(RuntimeError, match="forward has failed"):
        drive(bench._engine(cell, costs), specs(cell, SMOKE), 1, bench._pictures)


@pytest.mark.parametrize(("percent", "value"), [(50, 2.0), (95, 4.0), (0, 1.0)])
def test_percentiles_are_measured_values(percent: float, value: float) -> None:
    assert percentile([4.0, 1.0, 3.0, 2.0], percent) == value


def test_the_result_is_a_figure_file_and_a_miss_is_an_exit_code(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(Bench, "gain", lambda *_: 1.2)
    monkeypatch.setattr(Bench, "gap", lambda *_: 1e-12)
    out = tmp_path / "engine.json"
    assert main(["--check-only", "--out", str(out)]) == 0
    result = ResultFile.read(out)
    assert [figure.met for figure in result.figures] == [True] * 4
    assert json.loads(out.read_text())["detail"]["peak_tflops"] > 0
    monkeypatch.setattr(engine_bench, "MIN_GAIN", 1.3)
    assert main(["--check-only"]) == 1
    assert "missed: together over one by one" in capsys.readouterr().err


def test_it_needs_no_server_and_no_other_library(root: Path) -> None:
    program = (
        "import sys, loadtest.engine_bench\n"
        "names = ('ray', 'grpc', 'redis', 'typer', 'rich', 'pydantic', 'av', 'prometheus_client')\n"
        "print([name for name in names if name in sys.modules])"
    )
    run = subprocess.run(
        [sys.executable, "-c", program], cwd=root, capture_output=True, text=True, timeout=90, check=True
    )
    assert run.stdout.strip() == "[]"


def test_slots_are_those_of_the_cell(bench: Bench) -> None:
    memory = bench._memory(Cell("plain", 1, 5, Order.BACK_TO_BACK))
    assert memory.names == set()
    assert memory.free_slots == 5
    assert bench._memory(Cell("bank", 1, 3, Order.BACK_TO_BACK)).free_slots == 3
