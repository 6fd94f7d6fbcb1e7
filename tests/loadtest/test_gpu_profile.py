"""The profile of a GPU, in small on the CPU: every part answers, and its file can be read."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from loadtest.figures import ResultFile
from loadtest.gpu_profile import BATCHES, main

pytestmark = pytest.mark.unit


def test_every_part_is_asked_and_written_down(tmp_path: Path) -> None:
    out = tmp_path / "gpu_profile-cpu.json"
    code = main(
        [
            "--device",
            "cpu",
            "--size",
            "tiny",
            "--repeats",
            "1",
            "--frames",
            "1",
            "--compile",
            "--out",
            str(out),
        ]
    )
    parts = {part["name"]: part for part in json.loads(out.read_text(encoding="utf-8"))["detail"]["parts"]}
    assert code == 0, [part["failure"] for part in parts.values()]
    assert parts["ceilings"]["figures"].keys() == {"copy_tb_s", "matmul_tflop_s"}
    assert parts["diffusers"]["figures"]["fps"] > 0
    assert parts["unet"]["figures"].keys() == {f"batch_{batch}" for batch in BATCHES}
    for method in ("plain", "streamv2v"):
        for sessions in (1, 8):
            figures = parts[f"engine {method} {sessions}"]["figures"]
            assert figures["frames"] == sessions
            assert figures["dearest_on_host_us_per_frame"]
    result = ResultFile.read(out)
    assert [figure.unit for figure in result.figures] == ["FPS"] * 4
    assert "--out" not in result.command
