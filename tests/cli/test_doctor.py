"""`rearview doctor`: each finding with its remedy, exit codes, and the run that it records."""

from __future__ import annotations

import getpass
import json
import shutil
import socket
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from rearview.cli import checks, doctor, recording
from rearview.cli.checks import Check, Verdict
from rearview.cli.main import app
from rearview.config import IngressConfig, load_config
from rearview.machine import Machine, System, this_machine
from typer.testing import CliRunner

pytestmark = pytest.mark.unit

LINUX = Machine(System.LINUX, "6.1", "x86_64", cores=2, memory_bytes=16 << 30)


def found(results: Iterator[Check], name: str) -> Check:
    (check,) = [each for each in results if each.name == name]
    return check


@pytest.fixture
def few(monkeypatch: pytest.MonkeyPatch) -> Callable[[Sequence[Check]], None]:
    """Lets `doctor` find these alone."""

    def only(findings: Sequence[Check]) -> None:
        monkeypatch.setattr(doctor, "CHECKS", (lambda: iter(findings),))

    return only


@pytest.mark.parametrize(("verdict", "code"), [(Verdict.OK, 0), (Verdict.WARN, 0), (Verdict.FAIL, 1)])
def test_only_what_is_missing_makes_it_fail(
    few: Callable[[Sequence[Check]], None], verdict: Verdict, code: int
) -> None:
    few([Check("python", Verdict.OK, "3.11"), Check("disk", verdict, "1 GiB free", "free some")])
    result = CliRunner().invoke(app, ["doctor", "--no-ray"])
    assert result.exit_code == code
    assert "disk" in result.output
    assert "-> free some" in result.output


LATE = RuntimeError("The current node timed out during startup. This could\nhappen")


@pytest.mark.parametrize(
    ("error", "load", "verdict", "words"),
    [
        (LATE, 6.1, Verdict.WARN, "busy (load 6.1 on 2 cores)"),
        (TimeoutError("no answer"), 2.0, Verdict.WARN, "busy"),
        (LATE, 0.3, Verdict.FAIL, "shared memory"),
        (OSError("no room"), 6.1, Verdict.FAIL, "ports"),
    ],
)
def test_a_ray_that_comes_too_late_on_a_busy_machine_is_no_failure_of_the_machine(
    error: Exception, load: float, verdict: Verdict, words: str
) -> None:
    check = checks.ray_trouble(error, load, cores=2)
    assert (check.verdict, check.text) == (verdict, str(error).splitlines()[0])
    assert words in check.remedy
    assert "translate and demo work without it" in check.remedy


def test_a_missing_checkpoint_is_found(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr("rearview.contract.card.BUNDLED_CHECKPOINTS", tmp_path)
    monkeypatch.chdir(tmp_path)
    (check,) = checks.check_checkpoint()
    assert check.verdict is Verdict.FAIL
    assert "rearview train pocket" in check.remedy


def test_a_port_in_use_is_found() -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        (check,) = checks.check_port(IngressConfig(port=port))
    assert (check.verdict, str(port) in check.text) == (Verdict.WARN, True)
    assert "--port 0" in check.remedy


def test_full_disks_are_found_each_with_its_own_need(monkeypatch: pytest.MonkeyPatch) -> None:
    usage = SimpleNamespace(free=3 << 30)
    monkeypatch.setattr(checks.shutil, "disk_usage", lambda folder: usage)
    assert found(checks.check_space(), "disk, temp").verdict is Verdict.OK
    models = found(checks.check_space(), "disk, models")
    assert models.verdict is Verdict.WARN
    assert "5 GiB" in models.remedy
    assert "another folder" in models.remedy


@pytest.mark.parametrize("system", [System.APPLE, System.WSL, System.OTHER])
def test_where_nobody_has_run_it_a_record_is_asked_for(system: System) -> None:
    check = found(checks.check_system(replace(LINUX, system=system)), "system")
    assert check.verdict is Verdict.WARN
    assert "never run on" in check.text
    assert "rearview doctor --record" in check.remedy


def test_windows_itself_is_sent_to_wsl() -> None:
    check = found(checks.check_system(replace(LINUX, system=System.WINDOWS)), "system")
    assert check.verdict is Verdict.FAIL
    assert check.text.endswith("never run on Windows but through WSL2")
    assert "docs/install.md" in check.remedy


def test_little_memory_is_found() -> None:
    assert found(checks.check_system(LINUX), "memory").verdict is Verdict.OK
    assert found(checks.check_system(replace(LINUX, memory_bytes=1 << 30)), "memory").verdict is Verdict.WARN
    assert [check.name for check in checks.check_system(replace(LINUX, memory_bytes=0))] == ["system"]


def test_cameras_are_looked_for_where_that_can_be_done(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(checks, "VIDEO_DEVICE", tmp_path / "video0")
    (none,) = checks.check_camera(LINUX)
    assert none.verdict is Verdict.WARN
    (tmp_path / "video0").touch()
    (there,) = checks.check_camera(LINUX)
    assert there.verdict is Verdict.OK
    monkeypatch.setattr(checks.os, "access", lambda *_: False)
    (closed,) = checks.check_camera(LINUX)
    assert "usermod" in closed.remedy
    (windows,) = checks.check_camera(replace(LINUX, system=System.WSL))
    assert "browser" in windows.remedy


def test_a_page_that_is_not_whole_is_found(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    (whole,) = checks.check_page()
    assert whole.verdict is Verdict.OK, whole.text
    page = tmp_path / "page"
    shutil.copytree(checks.PAGE, page)
    monkeypatch.setattr(checks, "PAGE", page)
    (page / "app.js").unlink()
    (page / "vendor" / "preact.js").write_text("changed")
    (broken,) = checks.check_page()
    assert broken.verdict is Verdict.FAIL
    assert "lacks app.js" in broken.text
    assert "has another preact.js" in broken.text
    monkeypatch.setattr(checks, "CLIENT", tmp_path)
    assert "lacks client/link.js" in next(checks.check_page()).text
    shutil.rmtree(page)
    (gone,) = checks.check_page()
    assert "lacks client/link.js, lacks index.html, lacks view.html" in gone.text


def test_devices_and_the_choice_are_told(monkeypatch: pytest.MonkeyPatch) -> None:
    told = {check.name: check for check in checks.check_torch()}
    assert torch.__version__ in told["torch"].text
    assert "cpu: CPU" in told["device"].text
    assert told["computes on"].text.startswith("auto takes ")


def test_replicas_of_a_deployment_say_what_they_would_compute_on() -> None:
    config = load_config({"model": {"device": "cpu", "dtype": "float32"}, "topology": "pipeline"})
    told = list(checks.check_config(config))
    results = [check for check in told if check.name != "memory"]
    assert [check.name for check in results] == [
        "span encode",
        "span denoise-0",
        "span denoise-1",
        "span decode",
    ]
    assert {check.text for check in results} == {"CPU (cpu), float32, 1 x 1 threads"}
    assert len(told) == 2 * len(results)
    missing = load_config({"model": {"device": "xpu"}})
    (check,) = checks.check_config(missing)
    assert check.verdict is Verdict.FAIL
    assert "xpu" in check.text
    assert "no networks" in next(checks.check_config(load_config({"model": {"checkpoint": "null"}}))).text


def test_the_memory_of_a_deployment_is_told_and_what_does_not_fit() -> None:
    span = {"name": "fused", "operators": ["encode", "denoise-0", "denoise-1", "decode"]}
    model = {"device": "cpu", "dtype": "float32"}
    told = {}
    for slots in (2, 4096, "auto"):
        content = {"model": model, "cache": {}, "spans": [{**span, "slots": slots}]}
        told[slots] = list(checks.check_config(load_config(content)))[1]
    assert told[2].verdict is told["auto"].verdict is Verdict.OK
    assert told[2].text.startswith("fused: 0.31 GiB of ")
    assert (
        "weights 32.80 MiB, 2 slots of 0.14 GiB (cache 0.14 GiB), and what a start measures" in told[2].text
    )
    assert " slots of 0.14 GiB" in told["auto"].text
    assert told["auto"].text.endswith("and what a start measures; `auto` may then be fewer")
    assert told[4096].verdict is Verdict.FAIL
    assert "span fused needs 576 GiB of memory, and CPU has " in told[4096].text


def test_replicas_that_fit_alone_and_not_together_are_told_as_a_start_here_tells_them() -> None:
    span = {"name": "fused", "operators": ["encode", "denoise-0", "denoise-1", "decode"], "slots": 64}
    replicas = 2 + this_machine().memory_bytes // (9 << 30)
    model = {"device": "cpu", "dtype": "float32"}
    content = {"model": model, "cache": {}, "spans": [{**span, "replicas": replicas}]}
    memory = list(checks.check_config(load_config(content)))[1]
    assert memory.verdict is Verdict.WARN, "they need not be on one machine"
    assert memory.text.startswith("the service needs ")
    assert f": {replicas} x fused " in memory.text
    assert memory.remedy == "or run its replicas on several machines"


# --- the run that is recorded


def test_a_run_is_recorded_and_says_nothing_of_its_user(
    few: Callable[[Sequence[Check]], None], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    torch.set_num_threads(1)
    monkeypatch.setattr(recording, "SIZE", 64)
    few([Check("disk", Verdict.WARN, str(Path.home()), "")])
    file = tmp_path / "run.json"
    result = CliRunner().invoke(app, ["doctor", "--no-ray", "--record", str(file)])
    assert result.exit_code == 0, result.output
    content = json.loads(file.read_text())
    assert content["format"] == "rearview-run"
    assert content["checks"] == {"disk": "warn"}
    assert content["machine"]["system"] == this_machine().system.value
    assert [way["name"] for way in content["ways"]] == ["per frame", "feature bank", "motion modules"]
    assert all(way["frame_ms"] > 0 and way["error"] == "" for way in content["ways"])
    # float32 is the same as what it is compared with; half precision is near it.
    assert all(way["mean_difference"] < 4 for way in content["ways"])
    text = file.read_text()
    for secret in (str(Path.home()), socket.gethostname(), str(tmp_path), f'"{getpass.getuser()}"'):
        assert secret not in text


def test_what_a_device_cannot_do_is_the_finding(
    few: Callable[[Sequence[Check]], None], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    few([])

    def translated(
        device: torch.device, dtype: torch.dtype
    ) -> Iterator[tuple[str, list[object], list[float]]]:
        import numpy as np

        pictures = [np.full((2, 2, 3), 7, np.uint8)] * 12
        yield "per frame", pictures, [0.5] * 12
        if dtype is not torch.float32:
            raise NotImplementedError("The operator 'aten::x' is not there\nand more")
        yield "feature bank", pictures, [0.5] * 12

    monkeypatch.setattr(recording, "_translated", translated)
    monkeypatch.setattr("rearview.engine.devices.choose_dtype", lambda *_: torch.float16)
    file = tmp_path / "run.json"
    result = CliRunner().invoke(app, ["doctor", "--no-ray", "--record", str(file)])
    assert result.exit_code == 1
    ways = {way["name"]: way for way in json.loads(file.read_text())["ways"]}
    assert ways["per frame"]["frame_ms"] == 500.0
    assert ways["feature bank"]["error"] == "NotImplementedError: The operator 'aten::x' is not there"


def test_a_record_with_nowhere_to_go_is_refused_before_anything_is_looked_at(tmp_path: Path) -> None:
    result = CliRunner().invoke(app, ["doctor", "--record", str(tmp_path / "none" / "run.json")])
    assert result.exit_code == 1
    assert result.output.startswith("error: ")
    assert len(result.output.splitlines()) == 1
