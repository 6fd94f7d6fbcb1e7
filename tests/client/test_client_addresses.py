"""Pictures from addresses and to them, over loopback."""

from __future__ import annotations

import contextlib
import functools
import http.server
import itertools
import socket
import threading
import time
from collections.abc import Iterator
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import pytest
from client.clips import picture, write_clip
from rearview.client.live import LiveSource
from rearview.client.media import Fit, MediaError, VideoSource, open_source
from rearview.client.media_writer import Film
from rearview.client.targets import open_target

pytestmark = [pytest.mark.integration, pytest.mark.timeout(30)]


class _Files(http.server.SimpleHTTPRequestHandler):
    def log_message(self, *args: Any) -> None:
        pass


class _Endless(_Files):
    """MPEG-TS that goes on until nobody listens."""

    def do_GET(self) -> None:
        self.send_response(200)
        self.send_header("Content-Type", "video/mp2t")
        self.end_headers()
        with contextlib.suppress(OSError), av.open(self.wfile, "w", format="mpegts") as container:
            stream = container.add_stream("libx264", rate=30, options={"tune": "zerolatency", "g": "5"})
            stream.width, stream.height, stream.pix_fmt = 96, 80, "yuv420p"
            for number in itertools.count():
                frame = av.VideoFrame.from_ndarray(picture(number, 96, 80), format="rgb24")
                for packet in stream.encode(frame):
                    container.mux(packet)
                time.sleep(0.005)


@contextlib.contextmanager
def serving(handler: Any) -> Iterator[str]:
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}"
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
    return port


def test_a_file_behind_http_is_read_whole_with_its_sound(tmp_path: Path) -> None:
    write_clip(tmp_path / "in.mkv", count=12)
    with serving(functools.partial(_Files, directory=str(tmp_path))) as address:
        source = open_source(f"{address}/in.mkv?token=secret")
        assert isinstance(source, VideoSource)
        assert (source.size, source.is_live) == ((96, 80), False)
        assert source.audio_path is not None
        assert "secret" not in source.name
        assert len(list(source.pictures(96, 80, Fit.KEEP))) == 12


def test_a_stream_without_an_end_gives_its_newest_pictures_until_it_is_stopped() -> None:
    with serving(_Endless) as address:
        source = open_source(f"{address}/live.ts")
        assert isinstance(source, LiveSource)
        assert (source.size, source.is_live, source.num_frames) == ((96, 80), True, None)
        pictures = source.pictures(96, 80, Fit.KEEP)
        found = list(itertools.islice(pictures, 5))
        assert [item.pts for item in found] == sorted({item.pts for item in found})
        source.stop()
        assert len(list(pictures)) <= 1


@pytest.mark.parametrize(
    ("scheme", "options"), [("rtmp", {"listen": "1"}), ("tcp", {"listen": "1"}), ("udp", {})]
)
def test_what_is_sent_to_an_address_arrives(tmp_path: Path, scheme: str, options: dict[str, str]) -> None:
    source = open_source(str(write_clip(tmp_path / "in.mp4", count=40)))
    port = free_port()
    address, received = f"{scheme}://127.0.0.1:{port}" + ("/live/me" if scheme == "rtmp" else ""), []

    def receive() -> None:
        listening = address + ("?timeout=10000000" if scheme == "udp" else "")
        with contextlib.suppress(av.error.FFmpegError), av.open(listening, options=options) as container:
            for frame in container.decode(video=0):
                received.append((frame.width, frame.height))
                if len(received) == 10:
                    return

    receiver = threading.Thread(target=receive, daemon=True)
    receiver.start()
    deadline_s = time.monotonic() + 15
    while not received and time.monotonic() < deadline_s:
        # Who listens may not do so yet: then the first try fails, or goes nowhere.
        with contextlib.suppress(MediaError):
            target = open_target(address, source)
            writer = target.open(Film.like(source, 96, 80))
            for item in source.pictures(96, 80, Fit.KEEP):
                writer.write(item.image, item)
            writer.close(is_complete=True)
            assert target.settle(is_whole=True) == address
        receiver.join(0.2)
    assert received[:1] == [(96, 80)]


@pytest.mark.parametrize("scheme", ["rtsp", "rtmp", "http", "https", "tcp"])
def test_an_address_where_nobody_is_is_named_without_its_secrets(scheme: str) -> None:
    address = f"{scheme}://me:secret@127.0.0.1:{free_port()}/live"
    with pytest.raises(MediaError, match=rf"{scheme}://127\.0\.0\.1:\d+/live: cannot be opened") as caught:
        open_source(address)
    assert "secret" not in str(caught.value)


@pytest.mark.parametrize("address", ["ftp://host/in.mp4", "file:///in.mp4", "gopher://host/1"])
def test_an_address_of_another_kind_is_refused_with_those_that_are_taken(address: str) -> None:
    with pytest.raises(MediaError, match=r"cannot be read: take http://.*rtsp://.* or a file"):
        open_source(address)


def test_a_camera_that_is_not_there_comes_with_what_to_do() -> None:
    with pytest.raises(MediaError, match=r"camera /nowhere: cannot be opened: .*rearview doctor"):
        open_source("-", device="/nowhere")


def test_a_live_source_without_video_says_so(tmp_path: Path) -> None:
    with av.open(str(tmp_path / "sound.wav"), "w") as container:
        stream = container.add_stream("pcm_s16le", rate=8000, layout="mono")
        frame = av.AudioFrame(format="s16", layout="mono", samples=800)
        frame.sample_rate = 8000
        container.mux(stream.encode(frame))
    with pytest.raises(MediaError, match="microphone: has no video"):
        LiveSource("microphone", av.open(str(tmp_path / "sound.wav")), Fraction(30))
