"""What `translate` leaves behind, however it ends; and what it says before it begins."""

from __future__ import annotations

import asyncio
import signal
import subprocess
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import av
import numpy as np
import pytest
import typer
from client.clips import picture, video_times, write_clip
from rearview.cli.main import app
from rearview.cli.server import local_config
from rearview.cli.sizing import check_size, offered_room, room_of, shaped_options, sized_for
from rearview.client import Client, Method, Model
from rearview.client.fitting import Room
from rearview.client.media_writer import write_image
from rearview.config import load_config
from support import fake_server
from support.fake_server import FakeServer, Faults, serving_in_thread
from support.processes import REARVIEW
from typer.testing import CliRunner, Result

pytestmark = [pytest.mark.integration, pytest.mark.timeout(60)]


@pytest.fixture
def server() -> Iterator[FakeServer]:
    with serving_in_thread(Faults(depth=2)) as fake:
        yield fake


def run(server: FakeServer, source: Path, out: Path | str, *options: str) -> Result:
    command = ["translate", str(source), str(out), "--prompt", "clay", "--server", server.address]
    return CliRunner().invoke(app, [*command, *options])


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_an_interrupt_says_what_is_kept_and_nothing_else(tmp_path: Path, number: int, code: int) -> None:
    clip, out = write_clip(tmp_path / "in.mp4", count=30), tmp_path / "out.mp4"
    out.write_bytes(b"former")
    with serving_in_thread(Faults(withhold_credit=True, window=4)) as server:
        command = [*REARVIEW, "translate", str(clip), str(out), "--prompt", "clay"]
        command += ["--server", server.address]
        with subprocess.Popen(command, stderr=subprocess.PIPE, text=True) as process:
            deadline_s = time.monotonic() + 30
            while len(server.log.received) < 4 or not list(tmp_path.glob("out.partial.mp4")):
                assert time.monotonic() < deadline_s
                time.sleep(0.05)
            time.sleep(0.5)  # until the pictures are written, of which nobody outside is told
            process.send_signal(number)
            _, told = process.communicate(timeout=20)
    assert process.returncode == code, told
    count = len(video_times(tmp_path / "out.partial.mp4"))
    assert 1 <= count <= 4
    last = told.strip().splitlines()[-1]
    assert last == f"interrupted; {count} pictures are kept in {tmp_path / 'out.partial.mp4'}"
    assert "Traceback" not in told
    assert out.read_bytes() == b"former"


@pytest.mark.parametrize("link", [Path.symlink_to, Path.hardlink_to], ids=["link", "hard link"])
def test_the_input_survives_an_output_that_is_the_same_file(
    server: FakeServer, tmp_path: Path, link: Any
) -> None:
    clip = write_clip(tmp_path / "in.mp4", count=3)
    before = clip.read_bytes()
    other = tmp_path / "other.mp4"
    link(other, clip)
    for out in (clip, other):
        result = run(server, clip, out)
        assert (result.exit_code, "is the input" in result.output) == (1, True)
    assert clip.read_bytes() == before
    assert server.log.num_opens == 0


@pytest.mark.parametrize("report", ["in.mp4", "take.json", "out.mp4", "in.mp4/report.json", "folder"])
def test_a_report_replaces_nothing_that_is_read(server: FakeServer, tmp_path: Path, report: str) -> None:
    clip, take = write_clip(tmp_path / "in.mp4", count=3), tmp_path / "take.json"
    (tmp_path / "folder").mkdir()
    take.write_text('{"format": "rearview-score", "version": 1, "frame_rate": 30}')
    before = clip.read_bytes(), take.read_bytes()
    options = ["--report", str(tmp_path / report), "--score", str(take)]
    result = run(server, clip, tmp_path / "out.mp4", *options)
    assert result.exit_code == 1
    assert report.partition("/")[0] in result.output
    assert (clip.read_bytes(), take.read_bytes()) == before
    assert server.log.num_opens == 0


def test_frames_are_not_mixed_with_old_ones(server: FakeServer, tmp_path: Path) -> None:
    clip, out = write_clip(tmp_path / "in.mp4", count=3), tmp_path / "out"
    out.mkdir()
    write_image(out / "frame-000007.png", picture(0, 64, 64))
    refused = run(server, clip, out)
    assert (refused.exit_code, "--overwrite" in refused.output) == (1, True)
    assert run(server, clip, out, "--overwrite").exit_code == 0
    assert sorted(path.name for path in out.iterdir()) == [f"frame-{n:06d}.png" for n in range(3)]


@pytest.mark.parametrize("suffix", [".webm", ".gif", ".mkv"])
def test_other_containers_have_all_frames(server: FakeServer, tmp_path: Path, suffix: str) -> None:
    clip, out = write_clip(tmp_path / "in.mp4", count=5), tmp_path / f"out{suffix}"
    result = run(server, clip, out)
    assert result.exit_code == 0, result.output
    assert len(video_times(out)) == 5


def test_one_image_in_one_image_out(server: FakeServer, tmp_path: Path) -> None:
    write_image(tmp_path / "in.png", picture(0, 64, 64))
    result = run(server, tmp_path / "in.png", tmp_path / "out.png")
    assert result.exit_code == 0, result.output
    with av.open(str(tmp_path / "out.png")) as container:
        (seen,) = [frame.to_ndarray(format="rgb24") for frame in container.decode(video=0)]
    assert np.abs((255 - picture(0, 64, 64).astype(int)) - seen).mean() < 12


def test_pictures_of_one_colour_are_no_success(
    server: FakeServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    grey = np.full((64, 64, 3), 128, np.uint8)
    monkeypatch.setattr(fake_server, "invert", lambda *_: fake_jpeg(grey))
    clip = write_clip(tmp_path / "in.mp4", count=3)
    result = run(server, clip, tmp_path / "out.mp4")
    assert result.exit_code == 1
    assert "every picture is of one colour" in result.output
    assert not (tmp_path / "out.mp4").exists()


def fake_jpeg(image: np.ndarray) -> bytes:
    from rearview.client.wire import encode_jpeg

    return encode_jpeg(image, 90)


def test_a_dark_input_may_give_dark_pictures(server: FakeServer, tmp_path: Path) -> None:
    (tmp_path / "in").mkdir()
    for number in range(3):
        write_image(tmp_path / "in" / f"{number}.png", np.zeros((64, 64, 3), np.uint8))
    assert run(server, tmp_path / "in", tmp_path / "out").exit_code == 0


def test_what_becomes_of_the_shape_is_said(server: FakeServer, tmp_path: Path) -> None:
    clip = write_clip(tmp_path / "in.mp4", count=3)
    told = run(server, clip, tmp_path / "out.mp4").output
    assert "pictures of 96x80 become 64x64: 16.7% of the width cut off" in told
    told = run(server, clip, tmp_path / "wide.mp4", "--size", "96x80").output
    assert "pictures keep their size, 96x80\n" in told


@pytest.mark.parametrize("address", ["http://localhost:1", "localhost:port", ":1"])
def test_an_address_that_cannot_be_is_refused_at_once(tmp_path: Path, address: str) -> None:
    clip = write_clip(tmp_path / "in.mp4", count=1)
    command = ["translate", str(clip), str(tmp_path / "out.mp4"), "--prompt", "clay", "--server", address]
    result = CliRunner().invoke(app, command)
    assert (result.exit_code, result.output.startswith("error: --server ")) == (1, True)


def test_a_server_that_is_not_there_has_its_own_reason(tmp_path: Path) -> None:
    clip = write_clip(tmp_path / "in.mp4", count=1)
    with serving_in_thread() as gone:
        address = gone.address
    command = ["translate", str(clip), str(tmp_path / "out.mp4"), "--prompt", "clay", "--server", address]
    told = CliRunner().invoke(app, command).output
    assert f"no connection to {address}: nobody listens there" in told
    assert told.strip().endswith("(UNREACHABLE)")


@pytest.mark.parametrize("option", ["--token-file", "--tls-ca", "--score"])
@pytest.mark.parametrize("kind", ["missing", "folder"])
def test_every_file_that_cannot_be_read_is_named(
    server: FakeServer, tmp_path: Path, option: str, kind: str
) -> None:
    path = tmp_path / kind
    if kind == "folder":
        path.mkdir()
    clip = write_clip(tmp_path / "in.mp4", count=1)
    result = run(server, clip, tmp_path / "out.mp4", option, str(path))
    assert result.exit_code == 1
    assert str(path) in result.output
    assert "Errno" not in result.output
    assert server.log.num_opens == 0


# -- sizes


def test_the_service_that_is_started_has_room_for_the_size(tmp_path: Path) -> None:
    config = local_config()
    sized = sized_for(config, (512, 384))
    assert (sized.model.width, sized.model.height) == (512, 384)
    assert load_config(sized.model_dump(mode="json", exclude_none=True)).model == sized.model


def test_sides_fit_the_caches_that_a_service_keeps() -> None:
    assert room_of(local_config()) == Room(256 * 256, 32)
    assert room_of(load_config({})) == Room(256 * 256, 8)


@pytest.mark.parametrize("size", [(520, 256), (2048, 64), (32, 256), (1024, 1056)])
def test_a_size_that_no_service_here_takes_is_wrong_usage(size: tuple[int, int]) -> None:
    with pytest.raises(typer.BadParameter, match=f"{size[0]}x{size[1]}"):
        check_size(size, Room(256 * 256, 32), 1024 * 1024)


@pytest.mark.parametrize(
    ("model", "method", "source", "size"),
    [
        (Model(width=256, height=256), None, (1920, 1080), (336, 192)),
        (Model(width=256, height=256, side_multiple=32), None, (1920, 1080), (320, 192)),
        (Model(width=512, height=512, motion_side_multiple=64), Method.LIVE2DIFF, (640, 480), (576, 448)),
        (Model(width=512, height=512, motion_side_multiple=64), Method.STREAMV2V, (640, 480), (584, 440)),
        (
            Model(width=256, height=256, motion_side_multiple=64, default_method=Method.LIVE2DIFF),
            None,
            (300, 300),
            (256, 256),
        ),
        (Model(width=256, height=256), Method.LIVE2DIFF, (300, 300), (256, 256)),
        (Model(width=512, height=512, max_pixels=128 * 128), None, (300, 300), (128, 128)),
    ],
)
def test_what_a_server_says_of_its_model_gives_the_size(
    model: Model, method: Method | None, source: tuple[int, int], size: tuple[int, int]
) -> None:
    told = replace(model, min_side=64, max_pixels=model.max_pixels or 1 << 20)
    assert offered_room(told, method).snapped(source) == size


@pytest.mark.parametrize("is_old", [False, True])
async def test_a_session_is_opened_once_in_the_shape_of_the_source(
    monkeypatch: pytest.MonkeyPatch, is_old: bool
) -> None:
    monkeypatch.setattr(fake_server, "SIZE", 256)
    async with FakeServer(Faults(describes_no_model=is_old)) as server, Client(server.address) as client:
        options = await shaped_options(client, {"prompt": "clay"}, (1280, 720))
        async with client.open(**options) as session:
            opened = (session.opened.width, session.opened.height)
        assert opened == ((256, 256) if is_old else (336, 192)), "an old server's own size"
        assert server.log.num_opens == 1


async def test_a_server_that_is_about_to_come_is_waited_for() -> None:
    async with FakeServer() as server, Client(server.address) as client:
        await server.stop()
        asked = asyncio.create_task(shaped_options(client, {"prompt": "clay"}, (1280, 720)))
        with pytest.raises(TimeoutError):
            await asyncio.wait_for(asyncio.shield(asked), 0.3)
        await server.start()
        assert (await asked)["width"]
