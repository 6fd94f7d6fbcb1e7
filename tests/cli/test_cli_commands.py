"""The command line beside `translate`: sessions, demo's plan, and what starting it costs."""

from __future__ import annotations

import asyncio
import contextlib
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import av
import numpy as np
import pytest
import typer
from rearview.cli.contact_sheet import Row, write_contact_sheet
from rearview.cli.cues import Cue
from rearview.cli.demo import _job as demo_job
from rearview.cli.demo import choose_prompts, sample_frames, segment_starts
from rearview.cli.main import app
from rearview.cli.report import Report, percentiles
from rearview.cli.server import local_config, plain_service
from rearview.client import (
    Client,
    Dropped,
    ImageFormat,
    Method,
    SettingsChange,
    SpanTiming,
    Timings,
    Translated,
)
from rearview.client.media import open_source
from rearview.config import ServiceConfig
from rearview.errors import DropReason
from rearview.samples import sample_clip_path
from support.fake_server import FakeServer, serving_in_thread
from typer.testing import CliRunner

pytestmark = [pytest.mark.integration, pytest.mark.timeout(60)]


@pytest.fixture
def server() -> Iterator[FakeServer]:
    with serving_in_thread() as fake:
        yield fake


@pytest.mark.parametrize("error", [None, RuntimeError, KeyboardInterrupt])
def test_ctrl_c_is_heard_again_after_a_service_however_it_was_left(
    monkeypatch: pytest.MonkeyPatch, error: type[BaseException] | None
) -> None:
    heard = []

    @contextlib.contextmanager
    def service(config: ServiceConfig, on_progress: Callable[[str], None]) -> Iterator[None]:
        try:
            yield
        finally:
            heard.append(signal.getsignal(signal.SIGINT))

    monkeypatch.setattr("rearview.local.PlainService", service)
    before = signal.getsignal(signal.SIGINT)
    expected = contextlib.nullcontext() if error is None else pytest.raises(error)
    with expected, plain_service(local_config(), lambda text: None):
        if error is not None:
            raise error
    assert heard == [signal.SIG_IGN], "while it stops"
    assert signal.getsignal(signal.SIGINT) is before


def test_help_and_client_commands_load_neither_torch_nor_ray() -> None:
    script = (
        "import sys; from rearview.cli.main import app; import rearview.cli.translation, rearview.cli.server;"
        "import rearview.client, rearview.client.sync, rearview.client.media_writer;"
        "print([m for m in ('torch', 'ray', 'diffusers', 'transformers') if m in sys.modules])"
    )
    result = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, check=True, timeout=30
    )
    assert result.stdout.strip() == "[]"


def test_help_loads_no_grpc_or_codecs() -> None:
    script = (
        "import sys; from rearview.cli.main import app;"
        "print([m for m in ('grpc', 'av', 'numpy', 'google.protobuf', 'pydantic') if m in sys.modules])"
    )
    result = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, check=True, timeout=30
    )
    assert result.stdout.strip() == "[]"


def test_every_option_of_translate_stands_in_a_panel_of_its_help() -> None:
    panels: dict[str, list[str]] = {}
    for parameter in typer.main.get_command(app).commands["translate"].params:  # type: ignore[attr-defined]
        if parameter.param_type_name == "option":
            panels.setdefault(parameter.rich_help_panel, []).append(parameter.name)
    assert list(panels) == ["Picture", "Method", "Server", "Files"]
    assert {"prompt", "guidance", "negative_prompt", "adapters"} <= set(panels["Picture"])
    assert {"method", "bank_interval", "bank_policy", "skip_unchanged"} <= set(panels["Method"])


def test_a_blend_of_styles_is_asked_for_at_opening(tmp_path: Path) -> None:
    source = open_source(str(sample_clip_path()))
    prompts = ["ink", "neon"]
    job = demo_job(source, tmp_path, prompts, [0, 10], 20, Method.PER_FRAME, 6)
    assert job.options["blend_frames"] == 6
    assert job.cues == [Cue(change=SettingsChange(prompt="neon"), frame=10)]


def test_sessions_are_listed_shown_and_closed(server: FakeServer) -> None:
    runner, where = CliRunner(), ["--server", server.address]

    async def scenario() -> None:
        async with Client(server.address) as client, client.open() as session:
            session_id = session.opened.session_id
            listed = await asyncio.to_thread(runner.invoke, app, ["sessions", "list", *where])
            assert session_id in listed.output
            shown = await asyncio.to_thread(runner.invoke, app, ["sessions", "get", session_id, *where])
            assert "streaming" in shown.output
            closed = await asyncio.to_thread(runner.invoke, app, ["sessions", "close", session_id, *where])
            assert closed.exit_code == 0
            assert server.log.closed == [session_id]

    asyncio.run(scenario())
    assert "no sessions" in runner.invoke(app, ["sessions", "list", *where]).output


def test_a_session_that_is_not_there_is_one_line_and_exit_code_one(server: FakeServer) -> None:
    result = CliRunner().invoke(app, ["sessions", "get", "none", "--server", server.address])
    assert result.exit_code == 1
    assert result.output.strip() == "error: no such session (SESSION_UNKNOWN)"


def test_a_server_that_is_not_there_is_one_line_and_exit_code_one() -> None:
    with serving_in_thread() as server:
        address = server.address
    result = CliRunner().invoke(app, ["sessions", "list", "--server", address])
    assert result.exit_code == 1
    assert f"no connection to {address}" in result.output
    assert len(result.output.strip().splitlines()) == 1


def test_an_unknown_command_is_wrong_usage() -> None:
    assert CliRunner().invoke(app, ["transmogrify"]).exit_code == 2


@pytest.mark.parametrize("topology", ["fused", "pipeline"])
def test_the_local_configuration_owns_every_operator_and_takes_a_free_port(topology: str) -> None:
    config = local_config(topology)
    assert config.topology.value == topology
    assert config.ingress.port == 0
    assert len(config.spans) == (1 if topology == "fused" else 2)


def test_a_configuration_file_that_cannot_be_is_named_in_one_line(tmp_path: Path) -> None:
    file = tmp_path / "service.yaml"
    file.write_text("topology: round\n")
    result = CliRunner().invoke(app, ["up", "--config", str(file)])
    assert result.exit_code == 1
    assert "service.yaml: topology" in result.output
    assert "Traceback" not in result.output


def test_styles_to_show_are_those_the_model_knows() -> None:
    styles = {"natural": "a photo", "neon": "neon lights", "pencil": "pencil sketch"}
    assert choose_prompts(styles, []) == {"neon": "neon lights", "pencil": "pencil sketch"}
    assert choose_prompts(styles, ["natural", "a red fox"]) == {
        "natural": "a photo",
        "a red fox": "a red fox",
    }


def test_styles_share_the_frames_nearly_evenly() -> None:
    assert segment_starts(120, 4) == [0, 30, 60, 90]
    assert segment_starts(2, 4) == [0, 1]
    assert all(30 <= sample < 60 for sample in sample_frames(30, 60))
    assert sample_frames(5, 6) == [5]


def test_the_contact_sheet_has_a_row_per_style_and_a_label_on_it(tmp_path: Path) -> None:
    image = np.full((32, 48, 3), 200, np.uint8)
    pairs = [(image, 255 - image)] * 3
    write_contact_sheet(tmp_path / "sheet.png", [Row("oil", pairs), Row("neon", pairs), Row("none")])
    with av.open(str(tmp_path / "sheet.png")) as container:
        sheet = next(container.decode(video=0)).to_ndarray(format="rgb24")
    assert sheet.shape == (8 + 2 * (32 + 30 + 8), 8 + 3 * (96 + 8), 3)
    assert (sheet[8 + 30 + 16, 8 + 10] == 200).all()
    assert (sheet[8 + 30 + 16, 8 + 48 + 10] == 55).all()
    assert sheet[8:38].max() > 200


def test_a_report_counts_drops_apart_and_measures_from_opening_to_the_last_answer() -> None:
    report = Report(started_s=10.0)
    timings = Timings(0.02, 0.001, 0.002, (SpanTiming("fused", 0.003, 0.010),))
    for number in range(4):
        answer = Translated(number, 0.0, ImageFormat.JPEG, b"", 8, 8, timings, 0.030 + number * 0.01)
        report.record(answer, now=10.5 + number * 0.5)
    report.record(Dropped(4, DropReason.LATE, timings, 0.1), now=14.0)
    figures = report.as_dict()
    assert (figures["frames"], figures["translated"], figures["dropped"]) == (5, 4, {"late": 1})
    assert (figures["elapsed_s"], figures["fps"], figures["first_frame_s"]) == (4.0, 1.0, 0.5)
    assert figures["latency_ms"]["end to end"]["p50"] == pytest.approx(45.0)
    assert figures["latency_ms"]["fused queue"]["p99"] == pytest.approx(3.0)


def test_percentiles_are_in_milliseconds() -> None:
    assert percentiles([0.001] * 99 + [1.0]) == {"p50": 1.0, "p95": 1.0, "p99": pytest.approx(10.99, abs=0.1)}
