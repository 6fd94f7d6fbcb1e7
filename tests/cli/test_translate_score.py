"""`translate` with a schedule: `--at`, and a score of the studio."""

from __future__ import annotations

import json
import re
import shlex
from collections.abc import Iterator
from fractions import Fraction
from pathlib import Path
from typing import Any

import pytest
import typer
from client.clips import picture, video_times, write_clip
from rearview.cli.choices import parse_timesteps
from rearview.cli.cues import Cue, Schedule, cues_of, parse_cue
from rearview.cli.main import app
from rearview.client.media_writer import write_image
from rearview.contract.score import Event, Score
from rearview.contract.settings import SettingsChange
from rearview.errors import Reason
from rearview.v1 import translation_service_pb2 as pb
from support.fake_server import FakeServer, Faults, serving_in_thread
from typer.testing import CliRunner, Result

pytestmark = [pytest.mark.integration, pytest.mark.timeout(60)]


@pytest.fixture
def server() -> Iterator[FakeServer]:
    with serving_in_thread(Faults(depth=2)) as fake:
        yield fake


def run(server: FakeServer, source: Path, *options: str) -> Result:
    command = ["translate", str(source), str(source.with_name("out.mp4")), "--server", server.address]
    return CliRunner().invoke(app, [*command, *options])


def prompts(server: FakeServer) -> dict[int, str]:
    """By frame, where it is another one than that of the frame before."""
    found, last = {}, None
    for frame, settings in sorted(server.log.received_under.items()):
        if settings.prompt != last:
            found[frame], last = settings.prompt, settings.prompt
    return found


def steady(folder: Path, count: int) -> Path:
    """Images: 30 a second, unless `--fps` says otherwise."""
    images = folder / "images"
    images.mkdir()
    for number in range(count):
        write_image(images / f"{number}.png", picture(0, 64, 64))
    return images


def score(path: Path, **changes: Any) -> Path:
    content = {
        "format": "rearview-score",
        "version": 1,
        "frame_rate": 30,
        "open": {"settings": {"prompt": "clay", "seed": 7}, "drop_policy": "latest", "method": "streamv2v"},
        "events": [{"frame": 4, "settings": {"prompt": "ink"}}, {"frame": 8, "settings": {"prompt": "neon"}}],
    }
    path.write_text(json.dumps({**content, **changes}))
    return path


@pytest.mark.parametrize(
    ("moment", "frame", "at_s"),
    [("90", 90, 0), ("3s", None, 3), ("1.5s", None, 1.5), ("1:02.5", None, 62.5), ("1:02:03", None, 3723)],
)
def test_a_moment_is_a_time_or_the_number_of_a_frame(moment: str, frame: int | None, at_s: float) -> None:
    cue = parse_cue((moment, "ink"))
    assert cue == Cue(change=SettingsChange(prompt="ink"), frame=frame, at_s=at_s)


@pytest.mark.parametrize("moment", ["", "s", "-1", "3 s", "1:2:3:4", "1:60", "3m", "٣"])
def test_what_is_no_moment_is_refused(moment: str) -> None:
    with pytest.raises(typer.BadParameter, match="is no moment"):
        parse_cue((moment, "ink"))


def test_changes_come_once_and_in_order_and_those_for_later_wait() -> None:
    ink, neon, clay = (SettingsChange(prompt=text) for text in ("ink", "neon", "clay"))
    schedule = Schedule([Cue(change=ink, frame=2), Cue(change=neon, at_s=0.1), Cue(change=clay, frame=99)])
    due = [schedule.due(number, number / 30) for number in range(6)]
    assert due == [[], [], [ink], [neon], [], []]
    assert [cue.moment for cue in schedule.waiting] == ["frame 99"]


@pytest.mark.parametrize(("rate", "is_by_number"), [(30.0, True), (29.97, True), (25.0, False)])
def test_a_take_of_another_rate_is_followed_by_time(rate: float, is_by_number: bool) -> None:
    take = Score(frame_rate=30, events=(Event(45, SettingsChange(prompt="ink")),))
    (cue,) = cues_of(take, rate)
    assert (cue.frame, cue.at_s) == ((45, 0.0) if is_by_number else (None, 1.5))


def test_at_changes_the_prompt_at_a_frame_and_at_a_time(server: FakeServer, tmp_path: Path) -> None:
    images = steady(tmp_path, 20)
    result = run(server, images, "--prompt", "clay", "--at", "5", "ink", "--at", "0.5s", "neon")
    assert result.exit_code == 0, result.output
    assert prompts(server) == {0: "clay", 5: "ink", 15: "neon"}
    assert len(video_times(tmp_path / "out.mp4")) == 20
    (session,) = server.log.finished
    assert session


def test_the_line_of_the_documentation_does_what_it_says(
    server: FakeServer, tmp_path: Path, root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (line,) = re.findall(r"^rearview (translate .*)$", (root / "docs/cli.md").read_text(), re.MULTILINE)
    monkeypatch.chdir(tmp_path)
    times = [float(time) for time in video_times(write_clip(tmp_path / "walk.mp4", count=200))]
    result = CliRunner().invoke(app, [*shlex.split(line), "--server", server.address])
    assert result.exit_code == 0, result.output
    neon, pencil = (next(n for n, time in enumerate(times) if time >= at_s) for at_s in (3, 8))
    assert prompts(server) == {0: "oil painting", neon: "neon lights", pencil: "pencil sketch"}
    assert len(video_times(tmp_path / "out.mp4")) == 200


def test_an_at_at_the_beginning_is_the_prompt(server: FakeServer, tmp_path: Path) -> None:
    result = run(server, steady(tmp_path, 8), "--at", "0s", "clay", "--at", "0.1s", "ink")
    assert result.exit_code == 0, result.output
    assert prompts(server) == {0: "clay", 3: "ink"}


@pytest.mark.parametrize(
    ("at", "words"),
    [
        (["0.2s", "0.1s"], "0.1 s comes after 0.2 s on the line and not in the video"),
        (["0.2s", "0.2s"], "0.2 s comes after 0.2 s"),
        (["4", "3"], "frame 3 comes after frame 4"),
        (["0.1s", "1s"], "1 s is past the end: 20 frames, 0.67 s"),
        (["20"], "frame 20 is past the end: 20 frames, 0.67 s"),
    ],
)
def test_moments_out_of_order_or_past_the_end_are_refused(
    server: FakeServer, tmp_path: Path, at: list[str], words: str
) -> None:
    schedule = [word for moment in at for word in ("--at", moment, "ink")]
    result = run(server, steady(tmp_path, 20), "--prompt", "clay", *schedule)
    assert result.exit_code == 2
    assert words in " ".join(result.output.replace("│", " ").split())
    assert server.log.num_opens == 0
    assert not (tmp_path / "out.mp4").exists()


def test_until_the_first_at_something_must_say_a_prompt(server: FakeServer, tmp_path: Path) -> None:
    result = run(server, steady(tmp_path, 4), "--at", "0.1s", "ink")
    assert result.exit_code == 2
    assert "until 0.1 s, here or with --at 0s" in " ".join(result.output.replace("│", " ").split())


def test_an_event_of_a_score_past_the_end_is_told(server: FakeServer, tmp_path: Path) -> None:
    result = run(server, steady(tmp_path, 6), "--score", str(score(tmp_path / "take.json")))
    assert result.exit_code == 0, result.output
    assert prompts(server) == {0: "clay", 4: "ink"}
    assert "the video ended before the change at frame 8" in result.output


def test_times_are_those_of_the_pictures_where_their_rate_varies(server: FakeServer, tmp_path: Path) -> None:
    clip = write_clip(tmp_path / "in.mp4", count=20)
    times = video_times(clip)
    assert run(server, clip, "--prompt", "clay", "--at", "0.2s", "ink").exit_code == 0
    first = next(number for number, time in enumerate(times) if time >= Fraction(1, 5))
    assert prompts(server) == {0: "clay", first: "ink"}


def test_a_score_opens_and_changes_as_it_says_and_loses_nothing(server: FakeServer, tmp_path: Path) -> None:
    images = steady(tmp_path, 12)
    result = run(server, images, "--score", str(score(tmp_path / "take.json")))
    assert result.exit_code == 0, result.output
    assert prompts(server) == {0: "clay", 4: "ink", 8: "neon"}
    assert server.log.received_under[0].seed == 7
    assert len(video_times(tmp_path / "out.mp4")) == 12


def test_options_win_over_the_score_and_at_over_its_events(server: FakeServer, tmp_path: Path) -> None:
    server.faults.end_after_answers = (9, Reason.IDLE)
    take = str(score(tmp_path / "take.json"))
    run(server, steady(tmp_path, 12), "--score", take, "--prompt", "oil", "--at", "4", "chalk", "--fps", "30")
    (session,) = server.sessions.values()
    assert (session.open.method, session.open.drop_policy) == (pb.METHOD_STREAMV2V, 2)  # LOSSLESS
    assert prompts(server) == {0: "oil", 4: "chalk", 8: "neon"}


@pytest.mark.parametrize(
    ("options", "strength", "steps", "indices"),
    [
        ([], 0.6, 2, [15, 32]),
        (["--strength", "0.5"], 0.5, 2, []),
        (["--steps", "1"], 0.6, 1, []),
        (["--timesteps", "10,20,30"], 0.6, 0, [10, 20, 30]),
    ],
)
def test_timesteps_of_options_and_of_a_score_do_not_contradict_each_other(
    server: FakeServer, tmp_path: Path, options: list[str], strength: float, steps: int, indices: list[int]
) -> None:
    settings = {"prompt": "clay", "strength": 0.6, "steps": 2, "timestep_indices": [15, 32]}
    take = str(score(tmp_path / "take.json", open={"settings": settings}, events=[]))
    server.faults.end_after_answers = (1, Reason.IDLE)
    run(server, steady(tmp_path, 2), "--score", take, *options)
    (session,) = server.sessions.values()
    asked = session.open.settings
    assert (asked.strength, list(asked.timestep_indices)) == (pytest.approx(strength), indices)
    assert asked.steps == steps


@pytest.mark.parametrize("text", ["", "x", "32,15", "15,50", "-1,3"])
def test_what_are_no_timesteps_is_refused(text: str) -> None:
    with pytest.raises(typer.BadParameter, match="entries of the grid"):
        parse_timesteps(text)


def test_timesteps_say_strength_and_steps_already(server: FakeServer, tmp_path: Path) -> None:
    images = steady(tmp_path, 1)
    result = run(server, images, "--prompt", "clay", "--timesteps", "15,32", "--steps", "2")
    assert (result.exit_code, "--timesteps" in result.output) == (2, True)
    assert server.log.num_opens == 0


def test_a_score_of_another_rate_is_rendered_by_time(server: FakeServer, tmp_path: Path) -> None:
    take = str(score(tmp_path / "take.json"))
    assert run(server, steady(tmp_path, 12), "--score", take, "--fps", "15").exit_code == 0
    assert prompts(server) == {0: "clay", 2: "ink", 4: "neon"}


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"version": 3}, "version is 3"),
        ({"events": [{"frame": 1, "settings": {"strength": 2}}]}, "events[0].settings.strength"),
        ({"open": {"colour": 1}}, "open.colour is not known"),
    ],
)
def test_a_score_that_cannot_be_is_named_before_anything_starts(
    server: FakeServer, tmp_path: Path, changes: dict[str, Any], words: str
) -> None:
    take = score(tmp_path / "take.json", **changes)
    result = run(server, write_clip(tmp_path / "in.mp4", count=1), "--score", str(take))
    assert result.exit_code == 1
    assert words in result.output
    assert str(take) in result.output
    assert server.log.num_opens == 0


def test_a_score_that_is_not_there_is_named(server: FakeServer, tmp_path: Path) -> None:
    clip = write_clip(tmp_path / "in.mp4", count=1)
    result = run(server, clip, "--score", str(tmp_path / "none.json"))
    assert (result.exit_code, str(tmp_path / "none.json") in result.output) == (1, True)
    assert "Errno" not in result.output


@pytest.mark.parametrize("has_score", [False, True])
def test_something_must_say_a_prompt(server: FakeServer, tmp_path: Path, has_score: bool) -> None:
    clip = write_clip(tmp_path / "in.mp4", count=1)
    options = ["--score", str(score(tmp_path / "take.json", open={}))] if has_score else []
    result = run(server, clip, *options)
    assert result.exit_code == 2
    assert "--prompt" in result.output
    assert server.log.num_opens == 0


def test_a_change_that_the_service_refuses_ends_the_run(server: FakeServer, tmp_path: Path) -> None:
    take = score(tmp_path / "take.json", events=[{"frame": 4, "settings": {"prompt": " "}}])
    result = run(server, steady(tmp_path, 12), "--score", str(take))
    assert result.exit_code == 1
    assert "the change at frame 4 was refused" in result.output
    assert not (tmp_path / "out.mp4").exists()
