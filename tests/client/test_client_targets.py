"""Where pictures go: nothing is overwritten that should not be, and what can be known is said beforehand."""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import av
import numpy as np
import pytest
from client.clips import audio_packets, audio_samples, picture, times_ms, video_times, write_clip
from rearview.client.containers import CONTAINERS
from rearview.client.media import Fit, MediaError, Picture, Source, open_source
from rearview.client.media_writer import Film, VideoWriter, write_image
from rearview.client.targets import Target, open_target, whole_file

pytestmark = pytest.mark.unit

_KEEP = Fit.KEEP


@pytest.fixture
def clip(tmp_path: Path) -> Path:
    return write_clip(tmp_path / "in.mp4", count=6)


def write(target: Target, source: Source, *, count: int = 100, is_whole: bool = True) -> str:
    """The pictures of `source` as they are, the first `count` of them."""
    writer = target.open(Film.like(source, *source.size))
    for number, item in enumerate(source.pictures(*source.size, fit=_KEEP)):
        if number == count:
            break
        writer.write(item.image, item)
    writer.close(is_complete=is_whole)
    return target.settle(is_whole=is_whole)


def hard_link(path: Path, target: Path) -> None:
    os.link(target, path)


@pytest.mark.parametrize(
    "make",
    [
        lambda path, clip: None,
        lambda path, clip: path.symlink_to(clip),
        lambda path, clip: path.symlink_to(clip.name),
        hard_link,
    ],
    ids=["itself", "link", "relative link", "hard link"],
)
def test_the_input_is_never_the_output_by_whatever_name(
    clip: Path, make: Callable[[Path, Path], None]
) -> None:
    before = clip.read_bytes()
    other = clip.with_name("other.mp4")
    make(other, clip)
    name = other if other.exists() else clip
    with pytest.raises(MediaError, match="is the input"):
        open_target(str(name), open_source(str(clip)))
    assert clip.read_bytes() == before


def test_a_relative_path_to_the_input_is_seen(clip: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (clip.parent / "below").mkdir()
    monkeypatch.chdir(clip.parent / "below")
    with pytest.raises(MediaError, match="is the input"):
        open_target("../in.mp4", open_source(str(clip)))


def test_images_are_not_written_into_the_folder_that_they_are_read_from(tmp_path: Path) -> None:
    write_image(tmp_path / "frame-000000.png", picture(0, 64, 64))
    source = open_source(str(tmp_path))
    for name in (f"{tmp_path}/", str(tmp_path / "frame-000000.png")):
        with pytest.raises(MediaError, match="is the input"):
            open_target(name, source, overwrite=True)


def test_a_file_is_there_when_it_is_whole_and_the_former_one_until_then(clip: Path) -> None:
    out = clip.with_name("out.mp4")
    out.write_bytes(b"former")
    source = open_source(str(clip))
    target = open_target(str(out), source)
    writer = target.open(Film.like(source, *source.size))
    for item in source.pictures(*source.size, fit=_KEEP):
        writer.write(item.image, item)
        assert out.read_bytes() == b"former"
    writer.close(is_complete=True)
    assert target.settle(is_whole=True) == str(out)
    assert len(video_times(out)) == 6
    assert sorted(path.name for path in clip.parent.iterdir()) == ["in.mp4", "out.mp4"]


def test_what_broke_off_is_kept_under_another_name_that_was_free(clip: Path) -> None:
    out = clip.with_name("out.mp4")
    out.write_bytes(b"former")
    clip.with_name("out.partial.mp4").write_bytes(b"earlier")
    source = open_source(str(clip))
    kept = write(open_target(str(out), source), source, count=3, is_whole=False)
    assert kept == str(clip.with_name("out.partial-2.mp4"))
    assert len(video_times(Path(kept))) == 3
    assert out.read_bytes() == b"former"
    assert clip.with_name("out.partial.mp4").read_bytes() == b"earlier"


@pytest.mark.parametrize("name", ["out.mp4", "out.webm", "out.gif", "out/"])
def test_of_nothing_nothing_is_kept(clip: Path, name: str) -> None:
    source = open_source(str(clip))
    assert write(open_target(f"{clip.parent}/{name}", source), source, count=0, is_whole=False) == ""
    assert [path.name for path in clip.parent.rglob("*") if path.is_file()] == ["in.mp4"]


@pytest.mark.parametrize(
    ("sound", "shown"), [("gone.mp4", "gone.mp4"), ("http://me:secret@127.0.0.1:9/a", "http://127.0.0.1:9/a")]
)
def test_sound_that_cannot_be_opened_is_told_and_leaves_nothing(clip: Path, sound: str, shown: str) -> None:
    source = open_source(str(clip))
    target = open_target(str(clip.with_name("out.mp4")), source)
    film = replace(Film.like(source, *source.size), audio_path=sound)
    with pytest.raises(MediaError, match=f"^{shown}: cannot be opened") as error:
        target.open(film)
    assert "secret" not in str(error.value)
    assert list(clip.parent.iterdir()) == [clip]


def test_a_link_stays_a_link_to_the_new_file(clip: Path) -> None:
    (clip.parent / "elsewhere").mkdir()
    link = clip.with_name("out.mp4")
    link.symlink_to("elsewhere/real.mp4")
    source = open_source(str(clip))
    write(open_target(str(link), source), source)
    assert link.is_symlink()
    assert len(video_times(clip.parent / "elsewhere" / "real.mp4")) == 6


def test_a_folder_with_images_is_taken_when_that_is_said(clip: Path) -> None:
    out = clip.with_name("out")
    out.mkdir()
    for number in range(9):
        (out / f"frame-{number:06d}.png").write_bytes(b"former")
    (out / "cat.png").write_bytes(b"mine")
    source = open_source(str(clip))
    with pytest.raises(MediaError, match=r"has images already, such as cat\.png.*--overwrite"):
        open_target(str(out), source)
    assert write(open_target(str(out), source, overwrite=True), source) == str(out)
    names = [f"frame-{number:06d}.png" for number in range(6)]
    assert sorted(path.name for path in out.iterdir()) == ["cat.png", *names]
    assert (out / "cat.png").read_bytes() == b"mine"
    assert all((out / name).read_bytes() != b"former" for name in names)


def test_a_folder_that_broke_off_leaves_the_former_images(clip: Path) -> None:
    out = clip.with_name("out")
    out.mkdir()
    (out / "frame-000000.png").write_bytes(b"former")
    source = open_source(str(clip))
    kept = write(open_target(str(out), source, overwrite=True), source, count=2, is_whole=False)
    assert len(list(Path(kept).iterdir())) == 2
    assert (out / "frame-000000.png").read_bytes() == b"former"


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("out.avi", r"write to \.mp4.*folder"),
        ("in.mp4/out.mp4", "cannot be written"),
        ("in.mp4/out/", "cannot be written"),
        ("taken/", "is a file"),
        ("out.png", "is one image, and in.mp4 is more than one"),
        ("out.bmp", "one image is written as"),
        ("", "is no output"),
    ],
)
def test_what_cannot_be_written_is_said_before_anything_is(clip: Path, name: str, words: str) -> None:
    clip.with_name("taken").write_text("text")
    before = sorted(clip.parent.rglob("*"))
    with pytest.raises(MediaError, match=words):
        open_target(f"{clip.parent}/{name}" if name else "", open_source(str(clip)))
    assert sorted(clip.parent.rglob("*")) == before


@pytest.mark.parametrize(
    "address", ["ftp://host/out.mp4", "s3://bucket/out.mp4", "rtmp:/host/live", "http://host/out.mp4"]
)
def test_an_address_that_is_not_served_is_refused_and_never_a_folder(
    clip: Path, monkeypatch: pytest.MonkeyPatch, address: str
) -> None:
    monkeypatch.chdir(clip.parent)
    with pytest.raises(MediaError, match="take rtmp://"):
        open_target(address, open_source(str(clip)))
    assert [path.name for path in clip.parent.iterdir()] == ["in.mp4"]


def test_webm_has_its_own_codecs_and_the_times_and_length_of_the_input(clip: Path) -> None:
    out, source = clip.with_name("out.webm"), open_source(str(clip))
    write(open_target(str(out), source), source)
    with av.open(str(out)) as container:
        assert container.streams.video[0].codec_context.name in ("vp9", "libvpx-vp9")
    times = [float(time) for time in video_times(out)]
    expected = [time / 1000 for time in times_ms(6)]
    assert [time - times[0] for time in times] == pytest.approx(expected, abs=2e-3)
    assert audio_packets(out)[0] in ("opus", "libopus")
    assert audio_samples(out) == pytest.approx(audio_samples(clip), rel=0.1, abs=2000)


def test_sound_that_webm_takes_is_copied(tmp_path: Path) -> None:
    clip = write_clip(tmp_path / "in.mkv", count=6, audio="libopus")
    source = open_source(str(clip))
    write(open_target(str(tmp_path / "out.webm"), source), source)
    assert audio_packets(tmp_path / "out.webm")[1] == audio_packets(clip)[1]


def test_gif_has_all_pictures_in_their_colours(clip: Path) -> None:
    out, source = clip.with_name("out.gif"), open_source(str(clip))
    write(open_target(str(out), source), source)
    times = [float(time) for time in video_times(out)]
    assert [time - times[0] for time in times] == pytest.approx([t / 1000 for t in times_ms(6)], abs=0.011)
    with av.open(str(out)) as container:
        shown = [frame.to_ndarray(format="rgb24") for frame in container.decode(video=0)]
    for seen, item in zip(shown, source.pictures(*source.size, fit=_KEEP), strict=True):
        assert np.abs(seen.astype(int) - item.image).mean() < 8


@pytest.mark.parametrize("suffix", [".png", ".jpg"])
def test_one_image_becomes_one_image(tmp_path: Path, suffix: str) -> None:
    write_image(tmp_path / "in.png", picture(3, 64, 48))
    source = open_source(str(tmp_path / "in.png"))
    assert (source.num_frames, source.size) == (1, (64, 48))
    write(open_target(str(tmp_path / f"out{suffix}"), source), source)
    (seen,) = open_source(str(tmp_path / f"out{suffix}")).pictures(64, 48, _KEEP)
    assert np.abs(seen.image.astype(int) - picture(3, 64, 48)).mean() < (1 if suffix == ".png" else 12)


def test_a_failed_rewrite_leaves_the_former_file(tmp_path: Path) -> None:
    path = tmp_path / "deep" / "report.json"
    whole_file(path, lambda beside: beside.write_text("one"))

    def fails(beside: Path) -> None:
        beside.write_text("tw")
        raise OSError("full")

    with pytest.raises(OSError, match="full"):
        whole_file(path, fails)
    assert path.read_text() == "one"
    assert [item.name for item in path.parent.iterdir()] == ["report.json"]


def test_a_disk_that_is_full_is_told_with_the_name_of_the_file(clip: Path) -> None:
    if not Path("/dev/full").exists():
        pytest.skip("no /dev/full here")
    source = open_source(str(clip))
    writer = VideoWriter(
        "/dev/full", replace(CONTAINERS[".mkv"], format="matroska"), Film.like(source, 96, 80)
    )
    item = Picture(picture(0, 96, 80), 0, source.time_base)

    def write_out() -> None:
        writer.write(item.image, item)
        writer.close()

    with pytest.raises(MediaError, match="/dev/full: cannot be written"):
        write_out()
