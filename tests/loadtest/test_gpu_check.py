"""The check of a GPU, in small on the CPU: every part answers, and one that fails is written down."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from rearview.engine.memory.bank.pool import FeatureBank

from loadtest import engine_report, gpu_check
from loadtest.engine_models import SIZES
from loadtest.figures import ResultFile
from loadtest.gpu_check import METHODS, main

pytestmark = pytest.mark.unit

PARTS = [f"{kind} {method}" for kind in ("pictures", "row") for method in METHODS]


def run(out: Path, *options: str) -> tuple[int, dict[str, Any]]:
    code = main(["--device", "cpu", "--size", "tiny", "--repeats", "2", "--out", str(out), *options])
    return code, json.loads(out.read_text(encoding="utf-8"))


def test_every_part_is_asked_and_written_down(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    code, content = run(tmp_path / "gpu_check-cpu.json")
    parts = {part["name"]: part for part in content["detail"]["parts"]}
    assert [*parts] == PARTS
    assert (code, content["problems"]) == (0, []), [part["failure"] for part in parts.values()]
    for method in METHODS:
        pictures, row = parts[f"pictures {method}"]["figures"], parts[f"row {method}"]["figures"]
        assert pictures["float32"]["max_levels"] == pictures["float64"]["max_levels"] == 0
        assert pictures["contrast_levels"] > 1
        assert row["ms_min"] <= row["ms"] <= row["ms_max"]
        assert (row["repeats"], row["dtype"], row["pixels"]) == (2, "float32", 128)
        assert row["peak_mib"] > 0
    detail = content["detail"]
    assert (detail["device"], detail["torch"], detail["size"]) == ("CPU", torch.__version__, "tiny")
    assert {"cuda", "diffusers", "transformers", "seconds"} <= detail.keys()
    captured = capsys.readouterr()
    assert captured.out == ""
    assert all(f"{name}: ok" in captured.err for name in PARTS)
    result = ResultFile.read(tmp_path / "gpu_check-cpu.json")
    assert [figure.unit for figure in result.figures] == ["ms", "MiB"] * len(METHODS)


def test_what_fails_is_written_down_and_the_rest_goes_on(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    def broken(*arguments: object) -> None:
        raise RuntimeError("no kernel image")

    gpu_check.pictures.cache_clear()
    monkeypatch.setattr(FeatureBank, "gather", broken)
    code, content = run(tmp_path / "gpu_check-cpu.json")
    assert code == 1
    parts = {part["name"]: part for part in content["detail"]["parts"]}
    assert [*parts] == PARTS
    failed = {name for name, part in parts.items() if not part["passed"]}
    assert failed == {"pictures streamv2v", "row streamv2v"}
    assert [problem.partition(":")[0] for problem in content["problems"]] == sorted(failed)
    assert all("RuntimeError" in parts[name]["failure"] for name in failed)


@pytest.mark.parametrize(("dtype", "name"), [(torch.float32, "float32"), (torch.float64, "float64")])
def test_pictures_that_differ_are_told_apart(
    monkeypatch: pytest.MonkeyPatch, dtype: torch.dtype, name: str
) -> None:
    def pictures(run: gpu_check.Run, method: str) -> torch.Tensor:
        found = torch.arange(256, dtype=torch.uint8).repeat(4) ^ (method == "live2diff")
        if run == gpu_check.Run(run.size, torch.device("meta"), dtype):
            found[-1] ^= 0x40
        return found

    monkeypatch.setattr(gpu_check, "pictures", pictures)
    figures: dict[str, Any] = {}
    with pytest.raises(gpu_check.Unequal, match=f"^{name}: up to 64 levels apart, in 0.10% of the values$"):
        gpu_check.compare_pictures(SIZES["smoke"], torch.device("meta"), "live2diff", figures)
    assert figures[name]["max_levels"] == 64


def test_a_memory_that_changes_nothing_is_no_comparison(monkeypatch: pytest.MonkeyPatch) -> None:
    shown = torch.arange(256, dtype=torch.uint8)
    monkeypatch.setattr(gpu_check, "pictures", lambda run, method: shown)
    gpu_check.compare_pictures(SIZES["smoke"], torch.device("meta"), "per-frame", {})
    with pytest.raises(gpu_check.Unequal, match="equal means nothing"):
        gpu_check.compare_pictures(SIZES["smoke"], torch.device("meta"), "streamv2v", {})


def test_a_gpu_that_is_not_there_fails_every_part_in_words(tmp_path: Path) -> None:
    if torch.cuda.is_available():
        pytest.skip("there is one")
    code, content = run(tmp_path / "gpu_check-cuda.json", "--device", "cuda")
    assert code == 1
    assert len(content["problems"]) == 2 * len(PARTS), "of captured forwards, too"
    assert "CUDA" in content["detail"]["device"]


def test_a_gpu_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: f"{device} of a test")
    assert engine_report.device_name(torch.device("cuda")) == "cuda of a test"


def test_it_needs_no_server_and_no_other_library(root: Path) -> None:
    program = (
        "import sys, loadtest.gpu_check\n"
        "names = ('ray', 'grpc', 'redis', 'typer', 'rich', 'pydantic', 'av', 'prometheus_client',\n"
        "         'simplejpeg', 'google.protobuf', 'rearview_lab', 'rearview.config')\n"
        "print([name for name in names if name in sys.modules])"
    )
    run = subprocess.run(
        [sys.executable, "-c", program], cwd=root, capture_output=True, text=True, timeout=110, check=True
    )
    assert run.stdout.strip() == "[]"
