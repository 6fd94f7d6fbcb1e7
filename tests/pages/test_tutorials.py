"""docs/first-style.md and docs/cookbook.md: commands and programs as they stand, by the bundled model."""

from __future__ import annotations

import re
import shlex
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import av
import numpy as np
import pytest
import torch
import yaml
from rearview.cli.main import app
from rearview.client import Reconnect, Unreachable
from rearview.client.scores import read_score
from rearview.config import load_config
from rearview.samples import sample_clip_path
from support.pages import Block, Fence, blocks, fences
from support.threaded import serving
from support.waiting import eventually
from typer.testing import CliRunner

pytestmark = [pytest.mark.integration, pytest.mark.timeout(120)]

DOCS = Path(__file__).parents[2] / "docs"
STYLE, COOKBOOK = DOCS / "first-style.md", DOCS / "cookbook.md"
SIDE, FRAMES = 64, 3


@pytest.fixture(scope="module")
def address(root: Path) -> Iterator[str]:
    """The service of `rearview up`, for small pictures."""
    torch.set_num_threads(1)
    content = yaml.safe_load((root / "deploy/pocket-cpu-fused.yaml").read_text(encoding="utf-8"))
    content["model"] |= {"width": SIDE, "height": SIDE}
    content["spans"][0]["num_threads"] = 1  # Two that wait for each other burn what other tests need.
    with serving(load_config({**content, "ingress": {"port": 0}, "link": {"secret": "s"}})) as found:
        yield found


def here(block: Block, address: str) -> Block:
    """The program for a service elsewhere, and for small pictures."""
    code = block.code.replace('"localhost"', f'"{address}"').replace("256", str(SIDE))
    return Block(block.title, code, block.where)


def lines(language: str) -> list[Fence]:
    return [one for one in fences(STYLE) if one.language == language and not one.needs]


def pictures(path: Path) -> list[np.ndarray]:
    with av.open(str(path)) as container:
        return [frame.to_ndarray(format="rgb24") for frame in container.decode(video=0)]


def run(line: str, address: str) -> str:
    """A command of ours in this process, in the folder where a reader would be; what it says."""
    program, *words = shlex.split(line)
    assert program == "rearview"
    if words[0] == "translate":
        # Of a service that is there already, a few small pictures.
        assert words[-2:] == ["--max-frames", "100"], line
        words += ["--max-frames", str(FRAMES), "--server", address, "--size", f"{SIDE}x{SIDE}"]
    ran = CliRunner().invoke(app, words)
    assert ran.exit_code == 0, ran.output
    return ran.output


def test_every_step_to_an_own_style(
    root: Path,
    address: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "services").symlink_to(root / "services")
    (style,) = lines("json")
    assert "mine.json" in STYLE.read_text(encoding="utf-8").split("```json")[0].splitlines()[-2]
    (tmp_path / "mine.json").write_text(style.code, encoding="utf-8")
    listed, copying, *others = [line for fence in lines("sh") for line in fence.code.splitlines()]
    assert "cyberpunk" in run(listed, address)
    copied, source, name = copying.split()
    assert (copied, root / source) == ("cp", sample_clip_path())
    shutil.copy(source, name)
    for line in others:
        run(line, address)
    made = {
        name: pictures(tmp_path / f"{name}.mp4") for name in ("cartoon", "mine", "bolder", "other", "steady")
    }
    assert {len(found) for found in made.values()} == {FRAMES}
    for name, found in made.items():
        apart = np.abs(found[-1].astype(int) - made["mine"][-1].astype(int)).mean()
        assert name == "mine" or apart > 1, name
    (program,) = blocks(STYLE)
    here(program, address).run()
    assert capsys.readouterr().out == f"({SIDE}, {SIDE}, 3)\n" * 3
    assert [one.prompt for one in read_score(tmp_path / "mine.json").options["prompts"]] == [
        "cartoon",
        "cyberpunk",
    ]


def test_the_page_says_how_many_styles_there_are() -> None:
    told = re.search(r"knows (\w+) styles by name", STYLE.read_text(encoding="utf-8"))
    assert told is not None
    count = len(CliRunner().invoke(app, ["models", "styles"]).output.splitlines())
    assert ["ten", "eleven", "twelve"].index(told[1]) + 10 == count


def painter(address: str, options: str = "") -> Any:
    code, _ = (one for one in fences(COOKBOOK) if one.title == "TouchDesigner" and one.language == "python")
    text = code.code.replace("prompt=prompt)", f"prompt=prompt{options})")
    return Block(code.title, text, code.where).run(Reconnect=Reconnect)["Painter"](address, "neon lights")


GREY = np.full((SIDE, SIDE, 3), 128, np.uint8)


def test_a_painter_of_the_cookbook_paints_what_it_is_given(address: str) -> None:
    one = painter(address)
    one.give(GREY)
    eventually(lambda: one.latest is not None, within_s=30)
    neon = one.latest
    one.change(prompt="pencil sketch")
    one.give(GREY)
    eventually(lambda: np.abs(one.latest.astype(int) - neon.astype(int)).mean() > 5, within_s=30)
    one.close()
    assert (one.latest.shape, one.error) == ((SIDE, SIDE, 3), None)


def test_a_painter_without_a_service_never_waits_and_says_why() -> None:
    one = painter("127.0.0.1:1", ", reconnect=Reconnect(open_timeout_s=0.5)")
    for _ in range(100):
        one.give(GREY)
    assert one._waiting.qsize() <= 4
    one.close()
    assert isinstance(one.error, Unreachable)


def test_the_robot_of_the_cookbook_gets_pictures(address: str, capsys: pytest.CaptureFixture[str]) -> None:
    robot = next(one for one in blocks(COOKBOOK) if one.title == "A robot's camera")
    here(robot, address).run()
    *told, left_out = capsys.readouterr().out.splitlines()
    assert set(told) == {f"a picture ({SIDE}, {SIDE}, 3)"}
    assert left_out.startswith("left out: ")


def test_the_robot_of_the_cookbook_says_that_nobody_answers(capsys: pytest.CaptureFixture[str]) -> None:
    robot = next(one for one in blocks(COOKBOOK) if one.title == "A robot's camera")
    code = here(robot, "127.0.0.1:1").code.replace("give_up_after_s=20.0", "open_timeout_s=0.5")
    Block(robot.title, code, robot.where).run()
    assert "nobody listens there" in capsys.readouterr().out
