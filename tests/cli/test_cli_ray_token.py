"""`rearview up --ray` at a real Ray that wants a token: what it says, and that it serves with the right."""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path

import pytest
from rearview.client import DropPolicy, ImageFormat, Translated
from rearview.client.exchange import Frame
from rearview.client.sync import Client
from rearview.scratch import Scratch, unmarked

pytestmark = [pytest.mark.integration, pytest.mark.timeout(300)]

TOKEN = "a-token-of-a-test"
HOST = "127.0.0.1"
SERVICE = """
name: joined
model: {name: "null", checkpoint: "null", max_steps: 1}
ingress: {port: 0}
"""


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind((HOST, 0))
        return int(probe.getsockname()[1])


def environment(home: Path, **more: str) -> dict[str, str]:
    """Of a process that has no token but what `more` gives."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith("RAY_AUTH")}
    return {**kept, "HOME": str(home), "RAY_USAGE_STATS_ENABLED": "0", "RAY_worker_niceness": "0", **more}


@pytest.fixture(scope="module")
def head(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """`host:port` of a Ray with token authentication, as `ray start` begins one."""
    scratch = Scratch()
    port = free_port()
    ray = Path(sys.executable).with_name("ray")
    options = [f"--node-ip-address={HOST}", f"--port={port}", "--include-dashboard=false", "--num-cpus=4"]
    options += [f"--temp-dir={scratch.path}", "--object-store-memory=80000000", "--disable-usage-stats"]
    options += [f"--ray-client-server-port={free_port()}", "--no-monitor"]
    try:
        done = subprocess.run(
            [ray, "start", "--head", *options],
            env=environment(scratch.path, RAY_AUTH_MODE="token", RAY_AUTH_TOKEN=TOKEN),
            capture_output=True,
            text=True,
            timeout=120,
            check=False,
        )
        assert done.returncode == 0, done.stdout + done.stderr
        with unmarked():
            yield f"{HOST}:{port}"
    finally:
        scratch.remove()


@contextlib.contextmanager
def up(address: str, home: Path, more: Mapping[str, str]) -> Iterator[subprocess.Popen[str]]:
    config = home / "service.yaml"
    config.write_text(SERVICE)
    command = [sys.executable, "-m", "rearview.cli.main", "up", "--config", str(config), "--ray", address]
    pipe = subprocess.PIPE
    with subprocess.Popen(
        command, stdout=pipe, stderr=pipe, text=True, env=environment(home, **more), start_new_session=True
    ) as process:
        try:
            yield process
        finally:
            if process.poll() is None:
                os.killpg(process.pid, signal.SIGKILL)


def refusal(address: str, home: Path, **more: str) -> str:
    """What `up` ends with: one line, within the time that a person waits."""
    with up(address, home, more) as process:
        _, said = process.communicate(timeout=60)
    assert process.returncode == 1, said
    (line,) = [line for line in said.splitlines() if line.startswith("error:")]
    assert "Traceback" not in said
    return line


def test_without_a_token_it_says_what_to_set(head: str, tmp_path: Path) -> None:
    line = refusal(head, tmp_path)
    assert "RAY_AUTH_MODE=token" in line
    assert "RAY_AUTH_TOKEN " in line
    assert "RAY_AUTH_TOKEN_PATH" in line
    assert line.endswith("(TOKEN_INVALID)")


def test_with_another_token_it_says_so(head: str, tmp_path: Path) -> None:
    line = refusal(head, tmp_path, RAY_AUTH_MODE="token", RAY_AUTH_TOKEN="of-another-cluster")
    assert "has another token" in line
    assert "of-another-cluster" not in line
    assert line.endswith("(TOKEN_INVALID)")


def test_with_a_token_and_no_mode_it_names_the_mode(head: str, tmp_path: Path) -> None:
    line = refusal(head, tmp_path, RAY_AUTH_TOKEN=TOKEN)
    assert line.endswith("set RAY_AUTH_MODE=token (TOKEN_INVALID)")


def test_a_token_file_that_is_not_there_is_named(head: str, tmp_path: Path) -> None:
    line = refusal(head, tmp_path, RAY_AUTH_MODE="token", RAY_AUTH_TOKEN_PATH="/nowhere/token")
    assert "/nowhere/token" in line
    assert line.endswith("(TOKEN_INVALID)")


def test_where_no_ray_answers_it_says_where_it_looked(tmp_path: Path) -> None:
    address = f"{HOST}:{free_port()}"
    line = refusal(address, tmp_path)
    assert address in line
    assert line.endswith("(UNREACHABLE)")


def test_with_the_token_in_a_file_it_serves_and_leaves_what_else_is_there(head: str, tmp_path: Path) -> None:
    (tmp_path / "token").write_text(TOKEN)
    given = {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN_PATH": str(tmp_path / "token")}
    with up(head, tmp_path, given) as process:
        translate(ready_address(process))
        line = refusal(head, tmp_path, **given)
        assert line.startswith("error: name: that Ray serves a joined already")
        process.send_signal(signal.SIGINT)
        process.communicate(timeout=60)
    assert process.returncode == 0
    assert "has another token" in refusal(head, tmp_path, RAY_AUTH_TOKEN="wrong"), "the Ray is still there"


def ready_address(process: subprocess.Popen[str]) -> str:
    assert process.stdout is not None
    seen = []
    for line in process.stdout:
        seen.append(line)
        if line.startswith("READY"):
            return line.split()[1]
    raise AssertionError(f"ended without READY: {''.join(seen)}")


def translate(address: str) -> None:
    """Some frames, which come back as they went."""
    with Client(address) as client:
        frames = [Frame(bytes([number] * 64), index=number, format=ImageFormat.OPAQUE) for number in range(4)]
        answers = list(
            client.translate_frames(
                frames,
                prompt="none",
                answer_format=ImageFormat.OPAQUE,
                drop_policy=DropPolicy.LOSSLESS,
            )
        )
    assert [a.frame_index for a in answers if isinstance(a, Translated)] == list(range(4))
