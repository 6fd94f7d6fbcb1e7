"""Live2Diff's benchmark, on the smoke model."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
import torch
from rearview.engine.memory.cache.window import CacheWindow

from loadtest import live2diff_bench
from loadtest.engine_models import SIZES, build
from loadtest.figures import ResultFile
from loadtest.live2diff_bench import Bench, main

pytestmark = [pytest.mark.unit, pytest.mark.timeout(100)]

CPU = torch.device("cpu")


@pytest.fixture(autouse=True)
def few_frames(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(live2diff_bench, "PRECISION_FRAMES", 6)


@pytest.fixture(scope="module")
def bench() -> Bench:
    torch.set_num_threads(1)
    return Bench(SIZES["smoke"], CPU, torch.float32, repeats=1)


def test_every_kind_of_step_is_timed_for_every_storage(bench: Bench) -> None:
    found = list(bench.timings(2))
    kinds = [(timing.kind, timing.storage, timing.sessions) for timing in found]
    storages = ("float32", "float16", "bfloat16", "float8_e4m3fn")
    steps = [("plain", ""), *(("cached", storage) for storage in storages)]
    expected = [(*step, sessions) for sessions in (1, 2) for step in steps]
    assert kinds == [*expected, ("warm-up", "float32", 1)]
    assert all(timing.ms > 0 for timing in found)
    sizes = {timing.storage: timing.cache_mib for timing in found if timing.kind == "cached"}
    assert sizes["float32"] == 2 * sizes["float16"] == 4 * sizes["float8_e4m3fn"]
    assert bench.window == CacheWindow(8, 8)


def test_fewer_bits_err_more(bench: Bench) -> None:
    errors = bench.errors()
    assert list(errors) == ["float16", "bfloat16", "float8_e4m3fn"]
    assert 0 < errors["float16"] < errors["bfloat16"] < errors["float8_e4m3fn"] < 0.2


def test_half_precision_networks_keep_no_wider_cache() -> None:
    bench = Bench(SIZES["smoke"], CPU, torch.bfloat16, repeats=1)
    assert bench.storages == [torch.bfloat16, torch.float8_e4m3fn]


def test_stable_diffusions_cache_takes_what_the_note_says() -> None:
    """Section 3.2, on tensors without data: 40 layers and 1.42 GiB per step at 512 x 512 in float16."""
    model = build(SIZES["sd15"], torch.device("meta"), torch.float16, motion=True)
    layout = model.layouts.cache
    assert layout is not None
    assert len(layout.layers) == 40
    assert layout.bytes_per_step(64, 64, 16, torch.float16) == 1_520_435_200


def test_the_result_is_a_figure_file(tmp_path: Path) -> None:
    out = tmp_path / "engine_live2diff.json"
    assert main(["--repeats", "1", "--max-sessions", "1", "--device", "cpu", "--out", str(out)]) == 0
    result = ResultFile.read(out)
    assert len(result.figures) == 6 + 3
    assert result.detail["window"] == {"sink_frames": 8, "ring_frames": 8}


def test_it_needs_no_server_and_no_other_library(root: Path) -> None:
    program = (
        "import sys, loadtest.live2diff_bench\n"
        "names = ('ray', 'grpc', 'redis', 'typer', 'rich', 'pydantic', 'av', 'prometheus_client')\n"
        "print([name for name in names if name in sys.modules])"
    )
    run = subprocess.run(
        [sys.executable, "-c", program], cwd=root, capture_output=True, text=True, timeout=90, check=True
    )
    assert run.stdout.strip() == "[]"
