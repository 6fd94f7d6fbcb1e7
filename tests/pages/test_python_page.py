"""Every example of docs/python.md and README.md, as it stands, against the whole service."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from client.clips import video_times, write_clip
from rearview.config import load_config
from support.pages import Block, blocks
from support.threaded import serving
from support.tiny import write_tiny_checkpoint

pytestmark = [pytest.mark.integration, pytest.mark.timeout(120)]

PAGE = Path(__file__).parents[2] / "docs" / "python.md"
FOUND = blocks(PAGE)
BLOCKS = {block.title: block for block in FOUND}


@pytest.fixture(scope="module")
def address(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """A service of tiny random networks, on a loop of its own."""
    torch.set_num_threads(1)
    checkpoint = write_tiny_checkpoint(tmp_path_factory.mktemp("tiny"))
    model = {"checkpoint": str(checkpoint), "width": 64, "height": 64}
    config = load_config({"model": model, "ingress": {"port": 0}, "link": {"secret": "s"}})
    with serving(config) as found:
        yield found


def at(block: Block, address: str) -> Block:
    """The example for a service elsewhere; and 64 pixels wide where it says 256, to be quick."""
    code = block.code.replace('"localhost"', f'"{address}"').replace('"localhost:50051"', f'"{address}"')
    return Block(block.title, code.replace("256", "64"), block.where)


def test_the_example_of_the_readme(address: str) -> None:
    (example,) = blocks(PAGE.parents[1] / "README.md")
    frames = [np.full((64, 64, 3), level, np.uint8) for level in (40, 120, 200)]
    assert at(example, address).run(frames=frames)["picture"].shape == (64, 64, 3)


def test_every_block_of_the_page_is_run_here() -> None:
    assert [block.title for block in FOUND] == [
        "Pictures in, pictures out",
        "Pictures in, pictures out",
        "Frames and answers",
        "A video, with its sound",
        "Live, with changes on the way",
        "Errors",
        "Scores",
    ]


def test_pictures_in_pictures_out(address: str, capsys: pytest.CaptureFixture[str]) -> None:
    listed, live = (at(block, address) for block in FOUND[:2])
    listed.run()
    assert capsys.readouterr().out == "(64, 64, 3)\n" * 3
    live.run()
    *sizes, left_out = capsys.readouterr().out.splitlines()
    assert set(sizes) == {"(64, 64)"}
    assert len(sizes) + int(left_out.removeprefix("left out: ")) == 8


def test_frames_and_answers(address: str, capsys: pytest.CaptureFixture[str]) -> None:
    at(BLOCKS["Frames and answers"], address).run()
    told = capsys.readouterr().out.splitlines()
    assert [line.split(" ms")[0].rsplit(" ", 1)[0] for line in told] == [f"{n} (64, 64, 3)" for n in range(3)]


def test_a_video_with_its_sound(address: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    write_clip(tmp_path / "holiday.mp4", count=4)
    at(BLOCKS["A video, with its sound"], address).run()
    assert len(video_times(tmp_path / "painted.mp4")) == 4
    assert sorted(path.name for path in tmp_path.iterdir()) == ["holiday.mp4", "painted.mp4"]


def test_live_with_changes_on_the_way(address: str, capsys: pytest.CaptureFixture[str]) -> None:
    at(BLOCKS["Live, with changes on the way"], address).run()
    told = capsys.readouterr().out
    assert "picture 0\n" in told
    assert "from frame 6 on: neon lights\n" in told


def test_errors(address: str, capsys: pytest.CaptureFixture[str]) -> None:
    at(BLOCKS["Errors"], address).run()
    assert capsys.readouterr().out.startswith("strength is wrong: ")


def test_errors_where_nobody_answers(capsys: pytest.CaptureFixture[str]) -> None:
    at(BLOCKS["Errors"], "127.0.0.1:1").run()
    assert "nobody listens there" in capsys.readouterr().out


def test_scores(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    BLOCKS["Scores"].run()
    assert (tmp_path / "take.json").exists()
