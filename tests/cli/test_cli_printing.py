"""What programs read of the commands, as docs/cli.md says: JSON, exit codes, completion, nothing for eyes."""

from __future__ import annotations

import json
import os
import re
import shlex
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from client.clips import write_clip
from rearview.cli.main import app
from rearview.client.sync import Client
from rearview.errors import Reason
from support.commands import check_command
from support.fake_server import FakeServer, Faults, serving_in_thread
from support.processes import REARVIEW
from support.shapes import documented, shaped
from typer.main import get_command
from typer.testing import CliRunner

pytestmark = [pytest.mark.integration, pytest.mark.timeout(60)]

OF_THE_LABORATORY = {"train pocket", "eval", "chaos"}
FULL_COLOUR = {**os.environ, "TERM": "xterm-256color", "COLUMNS": "60"}


@pytest.fixture
def server() -> Iterator[FakeServer]:
    with serving_in_thread(Faults(depth=2)) as fake:
        yield fake


def commands(group: Any = None, before: str = "") -> dict[str, Any]:
    """All of them, by what is typed."""
    found = {}
    for name, command in (group or get_command(app)).commands.items():
        deeper = hasattr(command, "commands")
        found |= commands(command, f"{before}{name} ") if deeper else {f"{before}{name}": command}
    return found


def check(command: str, *words: str, code: int = 0, **how: Any) -> Any:
    """Run it with --json; stdout is one line of the documented shape."""
    ran = CliRunner().invoke(app, [*command.split(), *words, "--json"], **how)
    assert ran.exit_code == code, ran.output
    (line,) = ran.stdout.splitlines()
    return shaped(command, json.loads(line))


def test_every_command_has_json_and_its_shape_is_told() -> None:
    found = commands()
    with_json = {name for name, each in found.items() if any("--json" in one.opts for one in each.params)}
    assert with_json == set(found) - OF_THE_LABORATORY
    assert set(documented()) == with_json


def test_sessions_and_probe_say_what_is_documented(server: FakeServer) -> None:
    where = ("--server", server.address)
    assert check("sessions list", *where) == []
    assert check("probe", *where)["following_s"] >= 0
    with Client(server.address) as client, client.open(prompt="a") as session:
        (one,) = check("sessions list", *where)
        got = check("sessions get", session.opened.session_id, *where)
        assert {**one, "open_time": ""} == {**got, "open_time": ""}  # the fake server's is always now
        assert (one["session_id"], one["state"]) == (session.opened.session_id, "streaming")
        assert check("sessions close", one["session_id"], *where) == {"session_id": one["session_id"]}


def test_translate_says_its_report_and_nothing_else(server: FakeServer, tmp_path: Path) -> None:
    clip, out, report = (
        write_clip(tmp_path / "in.mp4", count=3),
        tmp_path / "out.mp4",
        tmp_path / "report.json",
    )
    words = (str(clip), str(out), "--prompt", "a", "--server", server.address, "--report", str(report))
    said = check("translate", *words)
    assert (said["translated"], said["pictures"], said["output"]) == (3, 3, str(out))
    assert said == json.loads(report.read_text())


def test_models_and_usage_say_what_is_documented(tmp_path: Path) -> None:
    assert {"bundled", "not fetched"} >= {
        each["state"] for each in check("models list", env={"REARVIEW_MODELS": str(tmp_path)})
    }
    assert "neon" in {each["name"] for each in check("models styles")}
    assert check("models check")["model"] == "pocket"
    assert check("usage", str(tmp_path)) == []


def test_doctor_says_what_works(monkeypatch: pytest.MonkeyPatch) -> None:
    from rearview.cli import doctor

    monkeypatch.setattr(doctor, "CHECKS", [*doctor.CHECKS[:1]])
    said = check("doctor", "--no-ray")
    assert said["works"] is True
    assert {tuple(sorted(each)) for each in said["checks"]} == {("name", "remedy", "text", "verdict")}


def test_the_studio_says_where_its_page_is_once_it_is_there(server: FakeServer) -> None:
    command = [*REARVIEW, "studio", "--no-open", "--port", "0", "--server", server.address, "--json"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        said = shaped("studio", json.loads(process.stdout.readline()))
        process.send_signal(signal.SIGTERM)
        left, _ = process.communicate(timeout=20)
    assert said["studio"].startswith("http://127.0.0.1:")
    assert (left, said["studio_lan"]) == ("", None)


# -- exit codes


def test_exit_codes_are_the_documented_ones(root: Path, server: FakeServer) -> None:
    """130 and 143 are those of test_translate_outputs.py."""
    text = (root / "docs/cli.md").read_text(encoding="utf-8")
    assert re.findall(r"^\| (\d+) \|", text, re.MULTILINE) == ["0", "1", "1", "2", "130", "143"]
    where = ["--server", server.address]
    server.faults.refuse = [(Reason.NO_CAPACITY, 2.5)]
    refused = CliRunner().invoke(app, ["probe", "--json", *where])
    assert (refused.exit_code, refused.stdout) == (1, "")
    assert "(NO_CAPACITY); try again in 2.5 s" in refused.stderr
    assert CliRunner().invoke(app, ["probe", *where]).exit_code == 0
    assert CliRunner().invoke(app, ["probe", "--timeout-s", "0", *where]).exit_code == 2


# -- where no terminal is


def piped(*words: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([*REARVIEW, *words], env=FULL_COLOUR, capture_output=True, text=True, timeout=50)


def test_through_a_pipe_there_is_nothing_for_eyes(server: FakeServer, tmp_path: Path) -> None:
    """Nor is a row cut off, however narrow the terminal is."""
    clip, where = write_clip(tmp_path / "in.mp4", count=3), ("--server", server.address)
    with Client(server.address) as client, client.open(prompt="a") as session:
        listed = piped("sessions", "list", *where)
    head, row = listed.stdout.splitlines()
    assert head.split()[0] == "session"
    assert row.split()[0] == session.opened.session_id
    translated = piped("translate", str(clip), str(tmp_path / "out.mp4"), "--prompt", "a", *where)
    failed = piped("sessions", "get", "none", *where)
    for ran in (listed, translated, failed, piped("models", "list"), piped("--help")):
        assert not re.search(r"[\x1b\r\b]", ran.stdout + ran.stderr)
    assert (translated.returncode, translated.stdout, failed.returncode) == (0, "", 1)


# -- completion


@pytest.mark.parametrize(
    ("line", "completed"),
    [
        ("rearview tra", ["translate", "train"]),
        ("rearview sessions ", ["list", "get", "close"]),
        ("rearview translate --dr", ["--drop-policy"]),
        ("rearview translate a b --fit ", ["keep", "crop", "stretch", "pad"]),
    ],
)
def test_tab_completes(line: str, completed: list[str]) -> None:
    word = len(line.split(" ")) - 1
    asked = {"_REARVIEW_COMPLETE": "complete_bash", "COMP_WORDS": line, "COMP_CWORD": str(word)}
    code = "from rearview.cli.main import app; app(prog_name='rearview')"
    ran = subprocess.run(
        [sys.executable, "-c", code], env={**os.environ, **asked}, capture_output=True, text=True, timeout=30
    )
    assert ran.stdout.split() == completed


def test_what_installs_completion_stands_in_help(root: Path) -> None:
    text = (root / "docs/cli.md").read_text(encoding="utf-8")
    told = CliRunner().invoke(app, ["--help"]).output
    for option in ("--install-completion", "--show-completion"):
        assert option in told
        assert f"rearview {option}" in text


def test_every_command_of_the_page_is_one_of_ours(root: Path) -> None:
    text = (root / "docs/cli.md").read_text(encoding="utf-8")
    lines = re.findall(r"^rearview (.*?)(?: +#.*)?$", text, re.MULTILINE)
    assert len(lines) == 3
    for line in lines:
        if not line.endswith("-completion"):  # options of the command itself
            check_command(shlex.split(line))
