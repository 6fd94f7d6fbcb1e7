"""The engine's benchmark as a command: its order, its budget, its file, and its answer to what is wrong."""

from __future__ import annotations

import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from loadtest import engine_bench
from loadtest.engine_bench import Budget, Run, main, short_name
from loadtest.engine_cells import METHODS, Bench, Cell
from loadtest.engine_checks import Check
from loadtest.engine_models import SIZES
from loadtest.engine_plan import jobs, matching
from loadtest.figures import ResultFile
from loadtest.peers import DIFFUSERS, STREAM_DIFFUSION, Peer

pytestmark = [pytest.mark.unit, pytest.mark.timeout(200)]

CPU, CUDA = torch.device("cpu"), torch.device("cuda")
SMOKE, WHOLE = SIZES["smoke"], SIZES["sd15"]
ONE = ["--device", "cpu", "--rounds", "2", "--only", "plain, 1 step, 1 session, eager"]


def test_on_a_gpu_what_is_asked_for_first_comes_first() -> None:
    found = jobs(WHOLE, CUDA, peers=(DIFFUSERS, STREAM_DIFFUSION))
    assert len(found) == len({job.name for job in found})
    assert found[0] == Cell("plain", 4, 8, accelerator="compiled graphs")
    first = found[:11]
    assert {(job.method, job.steps) for job in first if isinstance(job, Cell)} == {
        ("plain", 4),
        ("streamv2v", 4),
        ("live2diff", 2),
        ("plain", 1),
    }
    peers = [job for job in found if isinstance(job, Peer)]
    assert {(peer.who, peer.batch, peer.accelerator) for peer in peers} >= {
        *((DIFFUSERS, n, how) for n in (1, 8) for how in ("eager", "compiled")),
        (STREAM_DIFFUSION, 1, "eager"),
    }


def test_every_setting_is_there() -> None:
    cells = [job for job in jobs(WHOLE, CUDA) if isinstance(job, Cell)]
    settings = {(c.method, c.steps, c.sessions, c.order.value, c.accelerator) for c in cells}
    accelerators = ("eager", "graphs", "compiled", "compiled graphs")
    for method in METHODS:
        for sessions in (1, 2, 4, 8, 16, 32, 64):
            for accelerator in accelerators:
                assert {
                    (method, steps, sessions, "back_to_back", accelerator) for steps in (1, 2, 3, 4)
                } <= settings
                assert (method, 4, sessions, "stream_batch", accelerator) in settings
                assert (method, 1, sessions, "stream_batch", accelerator) not in settings


def test_a_cpu_captures_nothing_and_a_peer_that_is_not_there_is_not_asked() -> None:
    found = jobs(SMOKE, CPU)
    assert {job.accelerator for job in found} == {"eager", "compiled"}
    assert {job.who for job in found if isinstance(job, Peer)} == {DIFFUSERS}
    assert max(job.sessions for job in found if isinstance(job, Cell)) == 4


def test_only_takes_what_has_all_of_the_words() -> None:
    found = matching(jobs(WHOLE, CUDA), ["plain", "8 sessions"])
    assert found
    assert all("plain" in job.name and "8 sessions" in job.name for job in found)
    assert matching(found, []) == found


def test_a_budget_knows_what_still_fits() -> None:
    now = [0.0]
    budget = Budget(100.0, lambda: now[0])
    eager, compiled = Cell("plain", 1, 1), Cell("plain", 1, 1, accelerator="compiled")
    assert budget.fits(eager)
    assert not budget.fits(compiled)
    for seconds in (30.0, 40.0, 50.0):
        budget.took(eager, seconds)
    now[0] = 60.0
    assert budget.fits(eager)
    now[0] = 61.0
    assert not budget.fits(eager)
    budget.took(compiled, 2.0)
    assert budget.fits(compiled)
    assert Budget(None, lambda: 1e9).fits(compiled)


@pytest.mark.parametrize(
    ("device", "name"),
    [
        ("NVIDIA H200", "h200"),
        ("NVIDIA H100 80GB HBM3", "h100"),
        ("NVIDIA GeForce RTX 4090", "rtx_4090"),
        ("NVIDIA A100-SXM4-80GB", "a100-sxm4-80gb"),
        ("CPU", "cpu"),
    ],
)
def test_a_file_is_named_after_the_device(device: str, name: str) -> None:
    assert short_name(device) == name


def test_one_command_measures_and_writes_a_result(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "engine_cpu.json"
    assert main([*ONE, "--out", str(out)]) == 0
    result = ResultFile.read(out)
    (row,) = result.detail["rows"]
    assert row["check"]["max_levels"] <= 1
    assert row["frames"] == 2
    assert [(figure.unit, figure.value) for figure in result.figures] == [("FPS", row["fps"])]
    assert result.problems == []
    assert "--out" not in result.command
    assert "FPS" in capsys.readouterr().err


def test_pictures_that_deviate_are_a_problem_and_an_exit_code(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    wrong = Check(2, 3.0, 9, 40.0, 0.5, 1)
    monkeypatch.setattr(engine_bench.Reference, "check", lambda *_: wrong)
    out = tmp_path / "engine_cpu.json"
    assert main([*ONE, "--out", str(out)]) == 1
    result = ResultFile.read(out)
    assert "deviate from the plain path by 3 levels" in result.problems[0]
    assert result.figures == []


class PowerCut(BaseException):
    """Ends a run as nothing else does."""


def test_a_run_that_is_cut_off_keeps_its_rows_and_can_go_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out, measured = tmp_path / "engine_cpu.json", engine_bench.measure
    command = ["--device", "cpu", "--rounds", "1", "--out", str(out)]
    command += ["--only", "plain, 1 step", "eager", "back", "--list"]
    assert main(command) == 0
    assert not out.exists()
    left = [2]

    def once(*arguments: Any) -> Any:
        left[0] -= 1
        if left[0] < 0:
            raise PowerCut
        return measured(*arguments)

    monkeypatch.setattr(engine_bench, "measure", once)
    wanted = ["--only", "plain, 1 step", "eager"]
    more = [*command[:6], *wanted]
    monkeypatch.setattr(engine_bench, "jobs", lambda *_, **__: [Cell("plain", 1, n) for n in (1, 2, 3)])
    with pytest.raises(PowerCut):
        main(more)
    assert [row["sessions"] for row in ResultFile.read(out).detail["rows"]] == [1, 2]
    left[0] = 1
    assert main([*more, "--add"]) == 0
    assert [row["sessions"] for row in ResultFile.read(out).detail["rows"]] == [1, 2, 3]


def test_rows_of_another_model_are_not_added_to(tmp_path: Path) -> None:
    out = tmp_path / "engine_cpu.json"
    bench = Bench(SMOKE, CPU, torch.float32, 1e9)
    Run(bench, out, 1).write()
    Run(bench, out, 1).read()
    with pytest.raises(ValueError, match="bfloat16"):
        Run(replace(bench, dtype=torch.bfloat16), out, 1).read()


def test_what_fails_is_a_row_and_the_rest_goes_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*_: Any) -> Any:
        raise RuntimeError("out of memory")

    bench = Bench(SMOKE, CPU, torch.float32, 1e9)
    run = Run(bench, tmp_path / "engine_cpu.json", 1)
    with monkeypatch.context() as patch:
        patch.setattr(engine_bench, "measure", broken)
        row = run.do(Cell("plain", 1, 1))
    assert row["problem"] == "RuntimeError: out of memory"
    assert run.do(Cell("plain", 1, 2))["problem"] == ""
    result = ResultFile.read(run.out)
    assert [row["sessions"] for row in result.detail["rows"]] == [1, 2]
    assert result.problems == ["plain, 1 step, 1 session, eager: RuntimeError: out of memory"]


def test_a_past_for_which_there_is_no_room_is_said_beforehand(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = Run(Bench(SMOKE, CPU, torch.float32, 1e9), tmp_path / "engine_cpu.json", 1)
    monkeypatch.setattr(Bench, "fits", lambda *_: False)
    assert "the device has no room" in run.do(Cell("live2diff", 1, 1))["problem"]


@pytest.mark.parametrize("as_module", [False, True])
def test_it_runs_as_a_script_and_as_a_module(root: Path, tmp_path: Path, as_module: bool) -> None:
    command = ["-m", "loadtest.engine_bench"] if as_module else ["loadtest/engine_bench.py"]
    arguments = ["--device", "cpu", "--list", "--only", "live2diff, 2 steps, 1 session, eager"]
    environment = {**os.environ, "PYTHONPATH": f"{root}/services:{root}"}
    run = subprocess.run(
        [sys.executable, *command, *arguments],
        cwd=root,
        env=environment,
        capture_output=True,
        text=True,
        timeout=90,
        check=True,
    )
    assert run.stdout == "live2diff, 2 steps, 1 session, eager\n"


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
