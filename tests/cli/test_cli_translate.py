"""`rearview translate` from file to file, against a server that speaks the whole protocol."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import av
import numpy as np
import pytest
import simplejpeg
import typer
from client.clips import audio_packets, picture, times_ms, video_times, write_clip
from rearview.cli.choices import parse_adapters
from rearview.cli.main import app
from rearview.cli.server import Server, TlsChoice
from rearview.client.media_writer import write_image
from rearview.errors import DropReason, Reason
from rearview.v1 import settings_pb2
from rearview.v1 import translation_service_pb2 as pb
from support.fake_server import SIZE, FakeServer, Faults, serving_in_thread
from typer.testing import CliRunner, Result

pytestmark = [pytest.mark.integration, pytest.mark.timeout(60)]


@pytest.fixture
def server() -> Iterator[FakeServer]:
    """A willing server in another thread; tests change its faults."""
    with serving_in_thread(Faults(depth=2)) as fake:
        yield fake


def translate(server: FakeServer, source: Path | str, out: Path | str, *options: str) -> Result:
    command = ["translate", str(source), str(out), "--prompt", "clay", "--server", server.address]
    return CliRunner().invoke(app, [*command, *options])


def frames_of(path: Path) -> list[np.ndarray]:
    with av.open(str(path)) as container:
        return [frame.to_ndarray(format="rgb24") for frame in container.decode(video=0)]


def test_every_frame_its_time_and_the_sound_survive(server: FakeServer, tmp_path: Path) -> None:
    clip = write_clip(tmp_path / "in.mp4", count=30)
    result = translate(server, clip, tmp_path / "out.mp4")
    assert result.exit_code == 0, result.output
    assert [float(t) for t in video_times(tmp_path / "out.mp4")] == pytest.approx(
        [time / 1000 for time in times_ms(30)], abs=1e-4
    )
    assert audio_packets(tmp_path / "out.mp4") == audio_packets(clip)
    assert len(server.log.finished) == 1


def test_the_pictures_are_those_of_the_service(server: FakeServer, tmp_path: Path) -> None:
    clip = write_clip(tmp_path / "in.mp4", count=5, width=SIZE, height=SIZE)
    assert translate(server, clip, tmp_path / "out.mp4").exit_code == 0
    for before, after in zip(frames_of(clip), frames_of(tmp_path / "out.mp4"), strict=True):
        assert np.abs((255 - before.astype(int)) - after).mean() < 12


def test_controls_are_shown_videos_of_their_own_as_long_as_they_last(
    server: FakeServer, tmp_path: Path
) -> None:
    """In the size of the frames; a control that is not named is turned on, at weight 1."""
    clip = write_clip(tmp_path / "in.mp4", count=5, width=SIZE, height=SIZE)
    pose = write_clip(tmp_path / "pose.mp4", count=3, width=2 * SIZE, height=4 * SIZE)
    sent = ["--control-video", f"pose={pose}", "--control-video", f"edges={pose}", "--control", "edges=0.5"]
    result = translate(server, clip, tmp_path / "out.mp4", *sent)
    assert result.exit_code == 0, result.output
    assert [sorted(server.log.shown[n]) for n in range(5)] == [["edges", "pose"]] * 3 + [[]] * 2
    assert simplejpeg.decode_jpeg(server.log.shown[0]["pose"]).shape == (SIZE, SIZE, 3)
    controls = server.log.received_under[0].controls.controls
    assert [(one.name, one.weight) for one in controls] == [("edges", 0.5), ("pose", 1.0)]


def test_a_single_image_is_shown_to_its_control_with_every_frame(server: FakeServer, tmp_path: Path) -> None:
    clip = write_clip(tmp_path / "in.mp4", count=4, width=SIZE, height=SIZE)
    pose = tmp_path / "pose.jpg"
    pose.write_bytes(simplejpeg.encode_jpeg(np.full((SIZE, SIZE, 3), 90, np.uint8)))
    result = translate(server, clip, tmp_path / "out.mp4", "--control-video", f"pose={pose}")
    assert result.exit_code == 0, result.output
    assert len({server.log.shown[n]["pose"] for n in range(4)}) == 1


def test_a_video_for_a_control_is_named_once_and_not_written_over(server: FakeServer, tmp_path: Path) -> None:
    clip = write_clip(tmp_path / "in.mp4", count=2, width=SIZE, height=SIZE)
    for wrong in (["pose"], ["=x.mp4"], ["pose=a.mp4", "pose=b.mp4"], ["pose=nowhere.mp4"]):
        options = [word for each in wrong for word in ("--control-video", each)]
        assert translate(server, clip, tmp_path / "out.mp4", *options).exit_code != 0
    pose = write_clip(tmp_path / "pose.mp4", count=2, width=SIZE, height=SIZE)
    shown = ["--control-video", f"pose={pose}"]
    for names in ([pose, *shown], [tmp_path / "out.mp4", *shown, "--report", str(pose)]):
        result = translate(server, clip, *names)
        assert result.exit_code != 0
        assert "is the input" in result.output


def test_a_lost_connection_costs_no_frame(server: FakeServer, tmp_path: Path) -> None:
    server.faults.cut_after_answers = [3, 11]
    clip = write_clip(tmp_path / "in.mp4", count=20)
    result = translate(server, clip, tmp_path / "out.mp4", "--report", str(tmp_path / "report.json"))
    assert result.exit_code == 0, result.output
    assert len(video_times(tmp_path / "out.mp4")) == 20
    assert json.loads((tmp_path / "report.json").read_text())["connections"] == 3


def test_a_dropped_frame_repeats_the_picture_before_it(server: FakeServer, tmp_path: Path) -> None:
    server.faults.drop = {0: DropReason.FAULT, 4: DropReason.LATE, 9: DropReason.FAULT}
    clip = write_clip(tmp_path / "in.mp4", count=10, width=SIZE, height=SIZE)
    result = translate(server, clip, tmp_path / "out.mp4", "--report", str(tmp_path / "report.json"))
    assert result.exit_code == 0, result.output
    frames = frames_of(tmp_path / "out.mp4")
    assert len(frames) == 10
    for repeated, former in ((0, 1), (4, 3), (9, 8)):
        assert np.abs(frames[repeated].astype(int) - frames[former]).mean() < 3
    report = json.loads((tmp_path / "report.json").read_text())
    assert report["dropped"] == {"fault": 2, "late": 1}


def test_the_report_has_frames_rate_and_latency_by_stage(server: FakeServer, tmp_path: Path) -> None:
    report = tmp_path / "figures" / "report.json"
    clip = write_clip(tmp_path / "in.mp4", count=12)
    assert translate(server, clip, tmp_path / "out.mp4", "--report", str(report)).exit_code == 0
    figures = json.loads(report.read_text())
    assert (figures["frames"], figures["translated"]) == (12, 12)
    assert figures["fps"] > 0
    assert figures["latency_ms"]["fused compute"]["p50"] == pytest.approx(4.0)
    assert figures["latency_ms"]["codec"]["p99"] == pytest.approx(2.0)
    assert set(figures["latency_ms"]["end to end"]) == {"p50", "p95", "p99"}


def test_a_folder_of_images_becomes_a_folder_of_images(server: FakeServer, tmp_path: Path) -> None:
    source = tmp_path / "in"
    source.mkdir()
    for number in range(12):
        write_image(source / f"{number}.png", picture(number, 40, 30))
    result = translate(server, source, tmp_path / "out", "--fit", "pad")
    assert result.exit_code == 0, result.output
    assert len(list((tmp_path / "out").glob("frame-*.png"))) == 12


def test_compare_puts_input_and_output_side_by_side(server: FakeServer, tmp_path: Path) -> None:
    clip = write_clip(tmp_path / "in.mp4", count=3)
    assert translate(server, clip, tmp_path / "out.mp4", "--compare", "--size", "64x48").exit_code == 0
    assert frames_of(tmp_path / "out.mp4")[0].shape == (48, 128, 3)


def test_settings_reach_the_service(server: FakeServer, tmp_path: Path) -> None:
    clip = write_clip(tmp_path / "in.mp4", count=3)
    server.faults.end_after_answers = (1, Reason.CLOSED)
    translate(server, clip, tmp_path / "out.mp4", "--strength", "0.25", "--steps", "2", "--seed", "7")
    (session,) = server.sessions.values()
    assert session.settings.prompt == "clay"
    assert (session.settings.strength, session.settings.steps, session.settings.seed) == (0.25, 2, 7)
    assert session.open.drop_policy == 2  # LOSSLESS


def opened_with(server: FakeServer, tmp_path: Path, *options: str) -> pb.Open:
    """The opening message of a run with these options."""
    clip = write_clip(tmp_path / "in.mp4", count=3)
    server.faults.end_after_answers = (1, Reason.CLOSED)
    translate(server, clip, tmp_path / "out.mp4", *options)
    (session,) = server.sessions.values()
    return session.open


def test_guidance_and_adapters_reach_the_service(server: FakeServer, tmp_path: Path) -> None:
    options = ["--guidance", "initialize", "--guidance-scale", "2.5", "--delta", "0.5"]
    options += ["--negative-prompt", "blur", "--adapters", "ink"]
    settings = opened_with(server, tmp_path, *options).settings
    assert settings.guidance == settings_pb2.GUIDANCE_INITIALIZE
    assert (settings.guidance_scale, settings.delta) == (2.5, 0.5)
    assert settings.negative_prompt == "blur"
    assert [(one.adapters, one.weight) for one in settings.adapter_mix] == [("ink", 1.0)]


def test_adapter_sets_have_weights_of_their_own(server: FakeServer, tmp_path: Path) -> None:
    options = [part for text in ("ink=0.5", "oil", "pen=-1") for part in ("--adapters", text)]
    settings = opened_with(server, tmp_path, *options).settings
    mix = [(one.adapters, one.weight) for one in settings.adapter_mix]
    assert (mix, settings.HasField("adapters")) == ([("ink", 0.5), ("oil", 1.0), ("pen", -1.0)], False)
    for bad in (["ink=much"], ["ink=5"], ["ink"] * 5):
        with pytest.raises(typer.BadParameter, match=r"is no weight|up to 4, with weights of -4 to 4"):
            parse_adapters(bad)


def test_guidance_without_a_scale_gets_one_at_which_it_acts(server: FakeServer, tmp_path: Path) -> None:
    assert opened_with(server, tmp_path, "--guidance", "self").settings.guidance_scale > 1


def test_guidance_none_is_said_and_has_no_scale(server: FakeServer, tmp_path: Path) -> None:
    settings = opened_with(server, tmp_path, "--guidance", "none").settings
    assert settings.guidance == settings_pb2.GUIDANCE_NONE
    assert not settings.HasField("guidance_scale")


def test_what_is_not_chosen_is_left_to_the_service(server: FakeServer, tmp_path: Path) -> None:
    opened = opened_with(server, tmp_path)
    assert [field.name for field, _ in opened.settings.ListFields()] == ["prompt", "width", "height"]
    assert opened.method == pb.METHOD_UNSPECIFIED
    assert not opened.HasField("feature_bank")
    assert not opened.HasField("similarity_filter")


def test_options_of_live2diff_reach_the_service(server: FakeServer, tmp_path: Path) -> None:
    chosen = ["--method", "live2diff", "--prompt-change", "reset", "--scene-cut", "keep", "--instant-start"]
    opened = opened_with(server, tmp_path, *chosen)
    assert opened.method == pb.METHOD_LIVE2DIFF
    assert opened.temporal_cache == pb.TemporalCache(
        prompt_change=pb.TemporalCache.REWARM_RESET,
        scene_cut=pb.TemporalCache.REWARM_KEEP,
        instant_start=True,
    )
    assert not opened.HasField("feature_bank")


def test_live2diff_with_options_of_the_bank_asks_for_both(server: FakeServer, tmp_path: Path) -> None:
    opened = opened_with(server, tmp_path, "--method", "live2diff", "--bank-interval", "2")
    assert opened.method == pb.METHOD_LIVE2DIFF
    assert opened.feature_bank == pb.FeatureBank(interval=2)
    assert not opened.HasField("temporal_cache")


def test_options_of_the_bank_choose_its_method(server: FakeServer, tmp_path: Path) -> None:
    opened = opened_with(server, tmp_path, "--bank-interval", "2", "--bank-policy", "queue")
    assert opened.method == pb.METHOD_STREAMV2V
    assert opened.feature_bank == pb.FeatureBank(policy=pb.FeatureBank.POLICY_QUEUE, interval=2)


@pytest.mark.parametrize(
    ("options", "threshold"),
    [(["--skip-unchanged"], None), (["--skip-threshold", "0.75"], 0.75)],
)
def test_frames_that_do_not_change_are_left_out_if_that_is_asked_for(
    server: FakeServer, tmp_path: Path, options: list[str], threshold: float | None
) -> None:
    opened = opened_with(server, tmp_path, *options)
    assert opened.HasField("similarity_filter")
    assert opened.similarity_filter == pb.SimilarityFilter(threshold=threshold)


def test_max_frames_ends_the_video_and_its_sound(server: FakeServer, tmp_path: Path) -> None:
    clip = write_clip(tmp_path / "in.mp4", count=60)
    assert translate(server, clip, tmp_path / "out.mp4", "--max-frames", "7").exit_code == 0
    assert len(video_times(tmp_path / "out.mp4")) == 7
    assert len(audio_packets(tmp_path / "out.mp4")[1]) < len(audio_packets(clip)[1]) / 2


def test_an_error_on_the_way_leaves_a_readable_file_and_one_line(server: FakeServer, tmp_path: Path) -> None:
    server.faults.end_after_answers = (6, Reason.IDLE)
    result = translate(server, write_clip(tmp_path / "in.mp4"), tmp_path / "out.mp4")
    assert result.exit_code == 1
    assert "error: ended by the server (IDLE); " in result.output
    assert "Traceback" not in result.output
    count = len(video_times(tmp_path / "out.partial.mp4"))
    assert 1 <= count <= 6
    assert f"{count} pictures are kept in {tmp_path / 'out.partial.mp4'}" in result.output
    assert not (tmp_path / "out.mp4").exists()


def test_a_refusal_says_when_to_try_again(server: FakeServer, tmp_path: Path) -> None:
    server.faults.refuse = [(Reason.NO_CAPACITY, 2.5)]
    result = translate(server, write_clip(tmp_path / "in.mp4"), tmp_path / "out.mp4")
    assert result.exit_code == 1
    assert "(NO_CAPACITY); try again in 2.5 s" in result.output


def test_a_token_is_read_from_its_file(server: FakeServer, tmp_path: Path) -> None:
    server.faults.token = "secret"
    clip, token = write_clip(tmp_path / "in.mp4", count=2), tmp_path / "token"
    token.write_text("secret\n")
    assert "TOKEN_INVALID" in translate(server, clip, tmp_path / "out.mp4").output
    assert translate(server, clip, tmp_path / "out.mp4", "--token-file", str(token)).exit_code == 0


@pytest.mark.parametrize(
    ("source", "out", "message"),
    [
        ("none.mp4", "out.mp4", "no such file"),
        ("text.mp4", "out.mp4", "cannot be opened"),
        ("in.mp4", "out.avi", "write to .mp4"),
        ("in.mp4", "in.mp4", "is the input"),
        ("in.mp4", "text.mp4/out.mp4", "cannot be written"),
        ("in.mp4", "out.png", "is one image, and in.mp4 is more than one"),
        ("rtsp://127.0.0.1:1/live", "out.mp4", "rtsp://127.0.0.1:1/live: cannot be opened"),
        ("in.mp4", "ftp://host/out.mp4", "take rtmp://"),
    ],
)
def test_bad_files_are_named_in_one_line(
    server: FakeServer, tmp_path: Path, source: str, out: str, message: str
) -> None:
    write_clip(tmp_path / "in.mp4", count=1)
    (tmp_path / "text.mp4").write_text("no video")
    names = [name if "://" in name else str(tmp_path / name) for name in (source, out)]
    result = translate(server, *names)
    assert result.exit_code == 1
    assert message in result.output
    assert len(result.output.strip().splitlines()) <= 2
    assert server.log.num_opens == 0


@pytest.mark.parametrize(
    "options",
    [
        ["--size", "250x250"],
        ["--size", "big"],
        ["--steps", "0"],
        ["--drop-policy", "never"],
        ["--prompt", " "],
        ["--guidance", "some"],
        ["--guidance-scale", "2"],
        ["--guidance", "none", "--guidance-scale", "2"],
        ["--guidance", "full", "--guidance-scale", "0.5"],
        ["--guidance", "full", "--delta", "0.5"],
        ["--guidance", "self", "--negative-prompt", "blur"],
        ["--method", "per-frame", "--bank-interval", "2"],
        ["--method", "per-frame", "--bank-policy", "merge"],
        ["--scene-cut", "keep"],
        ["--method", "streamv2v", "--prompt-change", "reset"],
        ["--method", "per-frame", "--instant-start"],
        ["--skip-threshold", "1.5"],
        ["--at", "soon", "neon"],
        ["--at", "3s", " "],
        ["--at", "-3s", "neon"],
        ["--at", "1:75", "neon"],
    ],
)
def test_wrong_usage_ends_with_two(server: FakeServer, tmp_path: Path, options: list[str]) -> None:
    result = translate(server, write_clip(tmp_path / "in.mp4", count=1), tmp_path / "out.mp4", *options)
    assert result.exit_code == 2
    assert server.log.num_opens == 0


def test_a_token_file_is_read_again_and_the_former_token_holds_while_it_is_broken(tmp_path: Path) -> None:
    path = tmp_path / "token"
    path.write_text("first\n")
    token = Server.named("host:1", path, TlsChoice()).token
    assert callable(token)
    found = [token()]
    for content in ("second\n", "", "third\n"):
        path.write_text(content)
        found.append(token())
    assert found == ["first", "second", "second", "third"]


def test_a_bad_token_file_is_named_before_a_service_is_started(tmp_path: Path) -> None:
    clip, out = write_clip(tmp_path / "in.mp4", count=1), tmp_path / "out.mp4"
    command = ["translate", str(clip), str(out), "--prompt", "clay", "--server", "localhost:1"]
    result = CliRunner().invoke(app, [*command, "--token-file", str(tmp_path / "none")])
    assert result.exit_code == 1
    assert "--token-file" in result.output
    assert "connection" not in result.output


def test_a_target_that_cannot_be_is_named_before_a_service_is_started(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(
        "rearview.cli.server.local_config", lambda *_, **__: pytest.fail("a service was started")
    )
    clip = write_clip(tmp_path / "in.mp4", count=1)
    result = CliRunner().invoke(app, ["translate", str(clip), str(tmp_path / "out.avi"), "--prompt", "clay"])
    assert (result.exit_code, "write to .mp4" in result.output) == (1, True)
