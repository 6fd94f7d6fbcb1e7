"""`rearview studio`: what is wrong is told at once, and Ctrl-C ends page and service within seconds."""

from __future__ import annotations

import contextlib
import http.client
import json
import os
import signal
import socket
import ssl
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from rearview.cli.main import app
from rearview.config import load_config
from rearview.errors import ConfigError
from support.fake_server import serving_in_thread
from support.tiny_turbo import write_tiny_turbo
from support.waiting import eventually
from typer.testing import CliRunner

pytestmark = [pytest.mark.integration, pytest.mark.timeout(300)]

COMMAND = [sys.executable, "-m", "rearview.cli.main", "studio", "--no-open", "--port", "0"]


@contextmanager
def started(*options: str, seen: list[str] | None = None) -> Iterator[tuple[subprocess.Popen[str], str]]:
    """A studio as a process, and its URL; `seen` gets what it says until then."""
    with subprocess.Popen(
        [*COMMAND, *options],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
    ) as process:
        try:
            assert process.stdout is not None
            lines = [] if seen is None else seen
            for line in process.stdout:
                lines.append(line)
                if line.startswith("STUDIO"):
                    yield process, line.split()[1]
                    break
            else:
                raise AssertionError(f"no studio: {''.join(lines)}")
        finally:
            if process.poll() is None:
                os.killpg(process.pid, signal.SIGKILL)


def info(url: str) -> dict[str, dict[str, str]]:
    with urllib.request.urlopen(f"{url}api/info", timeout=10) as response:
        said: dict[str, dict[str, str]] = json.load(response)
    return said


def group(pid: int) -> set[int]:
    """Live processes of the process group, but its leader."""
    found = set()
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            fields = (folder / "stat").read_text().rpartition(")")[2].split()
        except OSError:
            continue
        if int(fields[3]) == pid and fields[0] != "Z":
            found.add(int(folder.name))
    return found - {pid}


def test_the_page_is_there_while_the_service_starts_and_all_ends_together() -> None:
    with started() as (process, url):
        assert info(url)["service"]["state"] in ("starting", "ready")
        deadline_s = time.monotonic() + 120
        while (said := info(url)["service"])["state"] != "ready":
            assert said["state"] == "starting", said
            assert time.monotonic() < deadline_s, said
            time.sleep(0.2)
        assert group(process.pid), "the service has processes"
        process.send_signal(signal.SIGINT)
        assert process.wait(timeout=30) == 0
        eventually(lambda: not group(process.pid), 5)  # what notes its end goes last


def test_a_studio_before_a_server_that_does_not_answer_says_so_in_the_page_and_on_the_terminal() -> None:
    seen: list[str] = []
    with started("--server", "127.0.0.1:9", seen=seen) as (process, url):
        eventually(lambda: info(url)["service"]["state"] == "unreachable", 10)
        said = info(url)
        assert (said["model"], said["local"]) == (None, False)
        process.send_signal(signal.SIGTERM)
        assert process.wait(timeout=30) == 0
        assert process.stdout is not None
        assert "127.0.0.1:9: nobody listens there" in "".join((*seen, *process.stdout))


def test_a_link_for_phones_comes_with_what_they_will_warn_of(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path))
    with started("--server", "127.0.0.1:9", "--lan") as (process, _):
        process.send_signal(signal.SIGTERM)
        assert process.stdout is not None
        said = process.stdout.read()
        assert process.wait(timeout=30) == 0
    assert "from other machines: https://" in said
    assert "warns once that the connection is not private" in said


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["--allow-origin", "nonsense"], "no origin"),
        (["--server", "127.0.0.1:9", "--token-file", "/nonexistent"], "--token-file"),
        (["--server", "127.0.0.1:9", "--tls-cert", "/nonexistent"], "--tls-key"),
        (["--ice-server", "stun:stun.example:3478"], "for --webrtc"),
        (["--webrtc", "--ice-server", "stun.example"], "stun:HOST:3478"),
        (["--webrtc", "--ice-server", "turn:turn.example"], "--turn-login"),
        (["--webrtc", "--ice-server", "stun:a:1", "--ice-server", "stun:b:1"], "one stun server"),
        (["--webrtc", "--turn-login", "/nonexistent"], "--turn-login /nonexistent"),
        (["--osc", "nonsense"], "--osc nonsense"),
        (["--osc", "127.0.0.1:99999"], "no HOST:PORT"),
        (["--ndi-address", "127.0.0.1"], "for --ndi-in"),
        (["--ndi-out", "one", "--ndi-prompt", "a"], "for --ndi-in"),
    ],
)
def test_what_is_wrong_is_told_before_anything_starts(options: list[str], words: str) -> None:
    result = CliRunner().invoke(app, ["studio", "--no-open", "--port", "0", *options])
    assert result.exit_code == 1
    assert words in result.output


@pytest.mark.parametrize(
    ("module", "options", "extra"),
    [
        ("aiortc", ["--webrtc"], "webrtc"),
        ("pythonosc.osc_packet", ["--osc", "0"], "stage"),
        ("pyvirtualcam", ["--virtual-camera"], "camera"),
        ("NDIlib", ["--ndi-out", "one"], "ndi"),
        ("NDIlib", ["--ndi-in", "one"], "ndi"),
    ],
)
def test_what_an_extra_brings_is_named_where_it_is_missing(
    monkeypatch: pytest.MonkeyPatch, module: str, options: list[str], extra: str
) -> None:
    monkeypatch.setitem(sys.modules, module, None)  # as if it were not installed
    result = CliRunner().invoke(app, ["studio", "--no-open", "--port", "0", *options])
    assert result.exit_code == 1
    assert f"pip install 'rearview[{extra}]'" in result.output


@pytest.mark.parametrize(
    ("option", "value", "wrong", "words"),
    [("--model", "pocket", "./nowhere", "--model"), ("--device", "cpu", "tpu", "model.device 'tpu'")],
)
def test_model_and_device_are_of_a_service_that_is_started_here(
    option: str, value: str, wrong: str, words: str
) -> None:
    options = ["--no-open", "--port", "0", "--server", "127.0.0.1:9", option, value]
    result = CliRunner().invoke(app, ["studio", *options])
    assert result.exit_code == 2
    assert option in result.output
    result = CliRunner().invoke(app, ["studio", "--no-open", "--port", "0", option, wrong])
    assert result.exit_code == 1
    assert words in result.output


BESIDE = """
import contextlib, sys
import rearview.local
from rearview.cli.studio_models import HubModels

@contextlib.contextmanager
def service(config, on_progress):
    print(config.model.name, config.model.width, "torch" in sys.modules)
    yield type("Service", (), {"stages": [], "address": "here"})

if __name__ == "__main__":
    rearview.local.PlainService = service
    with HubModels().start(sys.argv[1], print) as endpoint:
        print(endpoint.address, "torch" in sys.modules)
    with HubModels().start("./nowhere", print):
        pass
"""


def test_another_model_is_started_without_torch_in_the_studios_own_process(
    tmp_path: Path,
) -> None:
    (tmp_path / "beside.py").write_text(BESIDE)
    turbo = write_tiny_turbo(tmp_path / "turbo")
    command = [sys.executable, str(tmp_path / "beside.py"), str(turbo)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120)
    assert done.stdout.splitlines() == ["turbo 256 False", "here False"], done.stderr
    assert "ConfigError: --model './nowhere'" in done.stderr


def test_a_port_that_is_taken_is_named() -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        result = CliRunner().invoke(app, ["studio", "--no-open", "--port", str(taken.getsockname()[1])])
    assert result.exit_code == 1
    assert "--port" in result.output


def test_up_serves_no_studio_before_an_ingress_whose_certificate_it_could_not_check(tmp_path: Path) -> None:
    from rearview.cli.studio import Beside

    for name in ("cert.pem", "key.pem"):
        (tmp_path / name).write_text("")
    ingress = {"tls_cert_file": str(tmp_path / "cert.pem"), "tls_key_file": str(tmp_path / "key.pem")}
    with pytest.raises(ConfigError, match="--tls-ca"):
        Beside.bind(load_config({"ingress": ingress}), 0)


def test_up_serves_its_page_to_other_machines_where_that_is_asked_for(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    from rearview.cli.studio import Beside

    monkeypatch.setattr("typer.get_app_dir", lambda _: str(tmp_path))
    beside = Beside.bind(load_config({}), 0, lan=True)
    with serving_in_thread() as server, beside.serve(server.address) as link:
        assert link is not None
        place, key = link.split("/?key=")
        assert place.startswith("https://")
        assert key
        port, context = int(place.rpartition(":")[2]), ssl._create_unverified_context()
        with contextlib.closing(http.client.HTTPSConnection("127.0.0.1", port, context=context)) as phone:
            phone.request("GET", "/")
            assert phone.getresponse().read()
    result = CliRunner().invoke(app, ["up", "--lan", "--port", "0"], env={"COLUMNS": "200"})
    assert (result.exit_code, "needs --studio" in result.output) == (2, True)


def test_up_names_the_option_of_the_port_that_is_taken() -> None:
    def said(*options: str) -> str:
        result = CliRunner().invoke(app, ["up", *options], env={"COLUMNS": "200"})
        assert result.exit_code in (1, 2)
        return result.output

    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = str(taken.getsockname()[1])
        assert f"--studio-port {port}" in said("--port", "0", "--studio", "--studio-port", port)
        assert "--port chooses another one" in said("--port", port)
        assert "needs --studio" in said("--port", "0", "--studio-port", port)
