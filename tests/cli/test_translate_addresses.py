"""`translate` from an address and to one: real cameras, files and listeners on loopback."""

from __future__ import annotations

import functools
import http.server
import json
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import av
import numpy as np
import pytest
from client.clips import audio_packets, video_times, write_clip
from client.test_client_addresses import free_port
from client.test_client_media import write_rotated
from rearview.cli.main import app
from support.fake_server import FakeServer, Faults, serving_in_thread
from support.rtsp import rtsp_camera
from typer.testing import CliRunner, Result

pytestmark = [pytest.mark.integration, pytest.mark.timeout(60)]

LISTEN = """
import json, sys, av
kinds, frames = [], 0
with av.open(sys.argv[1], options=json.loads(sys.argv[2])) as container:
    try:
        for packet in container.demux():
            kinds = [stream.codec_context.name for stream in container.streams]
            frames += len(packet.decode()) if packet.stream.type == "video" else 0
    except av.error.FFmpegError:  # The sender is gone: there is no other end.
        pass
print(json.dumps([frames, sorted(kinds)]))
"""


@pytest.fixture
def server() -> Iterator[FakeServer]:
    with serving_in_thread(Faults(depth=2)) as fake:
        yield fake


@pytest.fixture
def behind_http(tmp_path: Path) -> Iterator[str]:
    """A folder's files."""

    class Files(http.server.SimpleHTTPRequestHandler):
        def log_message(self, *_: Any) -> None:
            pass

    folder = tmp_path / "served"
    folder.mkdir()
    with http.server.ThreadingHTTPServer(
        ("127.0.0.1", 0), functools.partial(Files, directory=str(folder))
    ) as files:
        thread = threading.Thread(target=files.serve_forever)
        thread.start()
        yield f"http://127.0.0.1:{files.server_port}"
        files.shutdown()
        thread.join()


def translate(server: FakeServer, source: str, out: Path | str, *options: str) -> Result:
    words = ["translate", source, str(out), "--prompt", "clay", "--server", server.address, *options]
    return CliRunner().invoke(app, words)


@pytest.mark.parametrize("suffix", [".mp4", ".mkv", ".webm", ".gif"])
def test_a_file_behind_http_becomes_a_file_of_every_kind(
    server: FakeServer, behind_http: str, tmp_path: Path, suffix: str
) -> None:
    """With its times, of which gif has hundredths, and its sound: as it was where the file can have it."""
    clip = write_clip(tmp_path / "served/in.mkv", count=12)
    out = tmp_path / f"out{suffix}"
    result = translate(server, f"{behind_http}/in.mkv", out)
    assert result.exit_code == 0, result.output
    times = [float(time) for time in video_times(clip)]
    assert [float(time) for time in video_times(out)] == pytest.approx(times, abs=0.02)
    if suffix in (".mp4", ".mkv"):
        assert audio_packets(out) == audio_packets(clip)
    elif suffix == ".webm":
        assert audio_packets(out)[0] == "opus"


def test_a_clip_filmed_sideways_becomes_an_upright_one(server: FakeServer, tmp_path: Path) -> None:
    upright = np.zeros((96, 80, 3), np.uint8)
    upright[:32] = 255
    write_rotated(tmp_path / "in.mp4", np.rot90(upright, -1), 90)
    result = translate(server, str(tmp_path / "in.mp4"), tmp_path / "out.mp4", "--size", "80x96")
    assert result.exit_code == 0, result.output
    with av.open(str(tmp_path / "out.mp4")) as container:
        frame = next(container.decode(video=0))
    shown = frame.to_ndarray(format="rgb24")
    assert (frame.rotation, shown.shape) == (0, upright.shape)
    assert shown[40:].mean() - shown[:24].mean() > 150  # the fake server's pictures are inverse


def test_a_camera_of_rtsp_is_translated_until_enough(server: FakeServer, tmp_path: Path) -> None:
    with rtsp_camera() as address:
        result = translate(server, address, tmp_path / "out.mp4", "--max-frames", "6")
    assert result.exit_code == 0, result.output
    times = video_times(tmp_path / "out.mp4")
    assert len(times) == 6
    assert times == sorted(set(times))
    (session,) = server.log.finished
    assert session


@pytest.mark.parametrize(
    ("scheme", "options"),
    [
        ("rtmp", {"listen": "1"}),
        ("rtsp", {"rtsp_flags": "listen", "listen_timeout": "20"}),
    ],
)
def test_pictures_and_sound_arrive_where_they_are_sent(
    server: FakeServer, tmp_path: Path, scheme: str, options: dict[str, str]
) -> None:
    clip, address = write_clip(tmp_path / "in.mp4", count=20), f"{scheme}://127.0.0.1:{free_port()}/live/me"
    command = [sys.executable, "-c", LISTEN, address, json.dumps(options)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as listener:
        deadline_s = time.monotonic() + 30
        while (result := translate(server, str(clip), address)).exit_code:
            # It may not listen yet.
            assert "cannot be written" in result.output
            assert time.monotonic() < deadline_s
            time.sleep(0.1)
        said, _ = listener.communicate(timeout=30)
    assert json.loads(said) == [20, ["aac", "h264"]]
    assert f"wrote {address}" in result.output
