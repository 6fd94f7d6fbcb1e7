"""The benchmarks' own arithmetic, bounds and complaints; the service itself is not started here."""

from __future__ import annotations

import json
import math
import os
import subprocess
import sys
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from rearview.contract.chain import Span
from rearview.engine.engine import Engine
from rearview.engine.memory.memoryless import Memoryless
from rearview.engine.networks.model import NullModel
from rearview.engine.scheduler import CostTable, Scheduler
from rearview.errors import ConfigError

from loadtest.admission import flood_detail
from loadtest.arms import Clip, EngineLoop
from loadtest.demo_time import clean_environment, ready_seconds
from loadtest.figures import RESULTS, Figure, ResultFile
from loadtest.floods import Greedy, Refusals
from loadtest.machine import cpu_seconds, describe_machine, process_tree
from loadtest.payloads import clip_jpegs
from loadtest.report import BEGIN, BEGIN_SHORT, END, insert, markdown, short
from loadtest.service import NULL_CUT, fused_config, parse_cut, pipeline_config, with_method
from loadtest.throughput import ARMS, figures, order, ratio, run_arm

pytestmark = [pytest.mark.unit, pytest.mark.timeout(60)]

METHODS = {"pipeline-1-streamv2v": 9.0, "pipeline-1-live2diff": 5.0}
ROUNDS = [
    METHODS
    | {"in-process-1": 10.0, "fused-1": 9.5, "pipeline-1": 16.0, "fused-2": 13.0, "in-process-2": 14.0},
    METHODS | {"in-process-1": 5.0, "fused-1": 4.7, "pipeline-1": 7.0, "fused-2": 6.0, "in-process-2": 7.0},
    METHODS
    | {"in-process-1": 20.0, "fused-1": 10.0, "pipeline-1": 30.0, "fused-2": 26.0, "in-process-2": 28.0},
]


def test_a_ratio_is_the_median_over_rounds_not_the_ratio_of_medians() -> None:
    assert ratio(ROUNDS, "fused-1", "in-process-1") == pytest.approx(0.94)


def test_every_target_of_the_throughput_benchmark_is_judged() -> None:
    judged = {figure.what: figure.met for figure in figures(ROUNDS, "s") if figure.target is not None}

    assert judged == {
        "gRPC and Serve / the same engine in process, 1 thread": True,
        "gRPC and Serve / the same engine in process, 2 threads": True,
        "pipeline / fused with 1 thread, FPS of one stream": True,
        "pipeline / fused with 2 threads, FPS of one stream": True,
        "FPS of one stream, pipeline-1": True,
        "FPS of one stream, pipeline-1-streamv2v": True,
    }
    worse = [{**fps, "pipeline-1": fps["fused-2"], "fused-2": 0.8 * fps["in-process-2"]} for fps in ROUNDS]
    assert [figure.met for figure in figures(worse, "s")[:4]] == [True, False, False, True]


def test_arms_take_turns_forwards_and_backwards() -> None:
    assert list(order(0)) == list(ARMS)
    assert list(order(1)) == list(ARMS[::-1])


def test_an_arm_that_fails_ends_the_benchmark_with_its_last_line(capsys: pytest.CaptureFixture[str]) -> None:
    def failing(command: list[str], **_: Any) -> subprocess.CompletedProcess[str]:
        return subprocess.CompletedProcess(command, 2, "", "noise\nloadtest: no such clip\n")

    with pytest.raises(SystemExit):
        run_arm(ARMS[0], [], "", run=failing)

    assert capsys.readouterr().err == "loadtest: in-process-1 ended with 2: no such clip\n"


def test_only_the_pipeline_arms_are_cut(capsys: pytest.CaptureFixture[str]) -> None:
    commands: list[list[str]] = []

    def note(command: list[str], **_: Any) -> subprocess.CompletedProcess[str]:
        commands.append(command)
        Path(command[command.index("--out") + 1]).write_text('{"fps": 1.0}')
        return subprocess.CompletedProcess(command, 0, "", "")

    for arm in ARMS:
        assert run_arm(arm, [], "encode|rest", run=note) == {"fps": 1.0}

    cut = [arm.name for arm, command in zip(ARMS, commands, strict=True) if "--cut" in command]
    assert cut == ["pipeline-1", "pipeline-1-streamv2v", "pipeline-1-live2diff"]
    threads = [command[command.index("--threads") + 1] for command in commands]
    assert threads == ["1", "1", "1", "2", "2", "1", "1"]
    methods = [command[command.index("--method") + 1] for command in commands if "--method" in command]
    assert methods == ["streamv2v", "live2diff"]


def test_a_method_is_what_sessions_get_that_name_none() -> None:
    config = pipeline_config("pocket", "encode|denoise-0+denoise-1|decode")
    banked, cached = with_method(config, "streamv2v"), with_method(config, "live2diff")
    assert banked.bank is not None
    assert banked.bank.default
    assert cached.cache is not None
    assert cached.cache.default
    assert with_method(config, "") == config
    with pytest.raises(ConfigError, match="method"):
        with_method(config, "vid2vid")


def test_the_engine_loop_translates_every_frame_once_and_in_order() -> None:
    config = fused_config("null", threads=1)
    span = Span.parse("fused", config.spans[0].operators)
    engine = Engine(span, NullModel(), Memoryless(1), Scheduler(CostTable(), 16))
    greys = [np.full((64, 64, 3), level, np.uint8) for level in (10, 60, 110, 160, 210)]
    clip = Clip(clip_jpegs(greys), 64, 64, "p", 0.5, 2)

    with ThreadPoolExecutor(2) as pool:
        loop = EngineLoop(engine, pool, clip, config)
        first, second = loop.translate(3), loop.translate(9)

    engine.check_integrity()
    shown = [clip.jpegs.index(jpeg) for jpeg in clip_jpegs([greys[index % 5] for index in range(12)])]
    assert [clip.jpegs.index(jpeg) for jpeg in first + second] == shown


def test_a_cut_names_spans_and_operators() -> None:
    assert parse_cut(NULL_CUT) == {
        "encode": ("encode",),
        "denoise-0-to-denoise-1": ("denoise-0", "denoise-1"),
        "decode": ("decode",),
    }


@pytest.mark.parametrize("cut", ["", "encode||decode", "encode|decode", "encode|denoise-1|denoise-0|decode"])
def test_a_cut_that_is_not_the_chain_is_refused(cut: str) -> None:
    with pytest.raises(ConfigError):
        pipeline_config("null", cut)


def test_pipeline_replicas_have_one_thread_and_the_slots_asked_for() -> None:
    config = pipeline_config("null", NULL_CUT, slots=40)

    assert [(span.num_threads, span.slots) for span in config.spans] == [(1, 40)] * 3


@pytest.mark.parametrize(
    ("output", "seconds"),
    [
        ("service READY in 12.3 s\n", 12.3),
        ("loading\nready after 7 s, streaming", 7.0),
        ("Ready (9.5 s)", 9.5),
    ],
)
def test_the_time_to_ready_is_read_from_what_the_demo_prints(output: str, seconds: float) -> None:
    assert ready_seconds(output) == seconds


def test_a_demo_that_does_not_say_when_it_was_ready_misses_the_target() -> None:
    seconds = ready_seconds("96 frames, already 12 s\n")

    assert math.isnan(seconds)
    assert Figure("start", "", seconds, "s", 30.0, at_most=True).met is False


def test_the_demo_runs_without_this_projects_python_and_with_empty_caches(tmp_path: Path) -> None:
    ours = {"VIRTUAL_ENV": "/v", "PYTHONPATH": "/p", "HOME": "/h", "UV_CACHE_DIR": "/full"}

    assert clean_environment(ours, tmp_path) == {
        "HOME": "/h",
        "UV_CACHE_DIR": str(tmp_path / "uv"),
        "PIP_CACHE_DIR": str(tmp_path / "pip"),
    }
    assert clean_environment(ours, None)["UV_CACHE_DIR"] == "/full"


def test_a_result_file_is_read_as_it_was_written(tmp_path: Path) -> None:
    figures_ = [Figure("a", "s", 1.5, "ms", 5.0, at_most=True), Figure("b", "s", math.nan, "s", 3.0)]
    result = ResultFile.of("x", "python -m x", figures_, {"k": 1}, ["p"])

    path = result.write(tmp_path)
    read = ResultFile.read(path)

    assert path.name == "x.json"
    assert (read.figures[0], read.problems, read.detail) == (figures_[0], ["p"], {"k": 1})
    assert math.isnan(read.figures[1].value)
    assert read.machine == result.machine


def test_a_file_that_is_no_result_is_named(tmp_path: Path) -> None:
    path = tmp_path / "y.json"
    path.write_text("{}")

    with pytest.raises(ValueError, match=r"y\.json is not a result"):
        ResultFile.read(path)


def test_the_table_names_figures_targets_machine_and_problems() -> None:
    figure = Figure("added latency", "null", 6.25, "ms", 5.0, at_most=True)
    detail = Figure("its p99", "null", 7.5, "ms")
    command = "python -m loadtest.transport"
    result = ResultFile.of("transport", command, [figure, detail], {}, ["2 x missing"])

    text = markdown([result])

    assert "its p99" not in text

    assert "| added latency | null | 6.25 ms | ≤ 5 ms | missed |" in text
    assert "Not to be relied on:** 2 x missing" in text
    assert describe_machine()["cpu"] in text


def test_the_table_replaces_only_what_stands_between_its_markers() -> None:
    result = ResultFile.of("transport", "a command", [Figure("added latency", "null", 1.0, "ms", 5.0)], {})
    document = f"above\n{BEGIN}\nold\n{END}\nbelow\n"

    once = insert(document, [result])

    assert once == f"above\n{BEGIN}\n\n{markdown([result])}\n{END}\nbelow\n"
    assert insert(once, [result]) == once
    with pytest.raises(ValueError, match="lacks"):
        insert("no markers", [result])


def test_the_readme_gets_the_few_figures_that_it_names_and_no_others() -> None:
    results = [ResultFile.read(path) for path in sorted(RESULTS.glob("*.json"))]
    told = insert(f"{BEGIN_SHORT}\n{END}", results)
    assert told.startswith(f"{BEGIN_SHORT}\n\n| | | measured with | on |")
    assert 5 <= told.count("\n| ") - 1 <= 8
    assert "Live2Diff, cache" not in told
    with pytest.raises(ValueError, match="no result has"):
        short([result for result in results if result.name != "transport"])


def test_a_process_tree_has_the_children_and_their_cpu_time_grows() -> None:
    code = "import sys\nprint(sum(range(10_000_000)), flush=True)\nsys.stdin.read()"
    child = subprocess.Popen([sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    try:
        assert child.stdout is not None
        child.stdout.readline()
        assert child.pid in process_tree(os.getpid())
        assert cpu_seconds([child.pid]) > 0
    finally:
        child.communicate()
    assert child.pid not in process_tree(os.getpid())
    assert cpu_seconds([child.pid]) == 0


@pytest.mark.parametrize(
    "flood",
    [Refusals([0.1, 0.2], Counter({"NO_CAPACITY": 2})), Greedy(5, 20, Counter({"RESOURCE_EXHAUSTED": 1}))],
)
def test_result_file_tells_what_a_flood_did(flood: Refusals | Greedy) -> None:
    told = json.loads(json.dumps(flood_detail(flood)))

    assert 2 in told.values() or told["controls"] == 20
    assert {"NO_CAPACITY": 2} in told.values() or told["ends"] == {"RESOURCE_EXHAUSTED": 1}
