"""Video in, video out: nothing is lost, and times and sound stay as they were."""

from __future__ import annotations

from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import pytest
from client.clips import audio_packets, audio_samples, picture, times_ms, video_times, write_clip
from rearview.client.containers import CONTAINERS
from rearview.client.fitting import Room, told_fit
from rearview.client.media import (
    Fit,
    ImagesSource,
    MediaError,
    Source,
    VideoSource,
    fitted_size,
    open_source,
    read_image,
)
from rearview.client.media_writer import Film, VideoWriter, side_by_side, write_image
from rearview.client.targets import open_target

pytestmark = pytest.mark.unit


def copy(source: Source, out: Path, width: int = 96, height: int = 80) -> int:
    target = open_target(str(out), source)
    writer = target.open(Film.like(source, width, height))
    count = 0
    for item in source.pictures(width, height, Fit.CROP):
        writer.write(item.image, item)
        count += 1
    writer.close(is_complete=True)
    assert target.settle(is_whole=True) == str(out)
    return count


@pytest.mark.parametrize("suffix", [".mp4", ".mkv", ".mov"])
def test_a_variable_frame_rate_survives_to_the_last_frame(tmp_path: Path, suffix: str) -> None:
    clip = write_clip(tmp_path / "in.mp4", count=20)
    assert copy(VideoSource(clip), tmp_path / f"out{suffix}") == 20
    times = [float(time) for time in video_times(tmp_path / f"out{suffix}")]
    if suffix == ".mkv":  # no edit list: everything is later by what the sound begins before zero
        times = [time - times[0] for time in times]
    assert times == pytest.approx([time / 1000 for time in times_ms(20)], abs=1e-4)


def test_the_length_of_the_last_frame_survives(tmp_path: Path) -> None:
    clip = write_clip(tmp_path / "in.mp4", audio=None)
    copy(VideoSource(clip), tmp_path / "out.mp4")
    with av.open(str(clip)) as before, av.open(str(tmp_path / "out.mp4")) as after:
        assert after.duration == before.duration


def test_an_audio_track_that_fits_is_copied_packet_by_packet(tmp_path: Path) -> None:
    clip = write_clip(tmp_path / "in.mp4", audio="aac")
    copy(VideoSource(clip), tmp_path / "out.mp4")
    assert audio_packets(tmp_path / "out.mp4") == audio_packets(clip)


def test_an_audio_track_that_does_not_fit_becomes_aac_of_the_same_length(tmp_path: Path) -> None:
    clip = write_clip(tmp_path / "in.mkv", audio="pcm_s16le")
    copy(VideoSource(clip), tmp_path / "out.mp4")
    assert audio_packets(tmp_path / "out.mp4")[0] == "aac"
    assert audio_samples(tmp_path / "out.mp4") == pytest.approx(audio_samples(clip), abs=1024)


def test_a_clip_that_does_not_start_at_zero_keeps_sound_and_picture_together(tmp_path: Path) -> None:
    clip = write_clip(tmp_path / "in.ts", start_s=5)
    with av.open(str(clip)) as container:
        assert container.start_time > 4_000_000
    copy(VideoSource(clip), tmp_path / "out.mp4")
    with av.open(str(clip)) as before, av.open(str(tmp_path / "out.mp4")) as after:
        gaps = [
            float(c.streams.video[0].start_time * c.streams.video[0].time_base)
            - float(c.streams.audio[0].start_time * c.streams.audio[0].time_base)
            for c in (before, after)
        ]
    assert gaps[0] == pytest.approx(gaps[1], abs=0.001)
    assert len(video_times(tmp_path / "out.mp4")) == 20


def test_an_incomplete_output_is_readable_and_its_sound_ends_with_its_pictures(tmp_path: Path) -> None:
    source = VideoSource(write_clip(tmp_path / "in.mp4", count=40))
    out = tmp_path / "out.mp4"
    writer = VideoWriter(str(out), CONTAINERS[".mp4"], Film.like(source, 96, 80))
    pictures = source.pictures(96, 80, Fit.CROP)
    for _ in range(10):
        item = next(pictures)
        writer.write(item.image, item)
    writer.close(is_complete=False)
    assert len(video_times(out)) == 10
    assert audio_samples(out) / 48_000 < times_ms(40)[12] / 1000


def test_a_clip_cut_off_in_the_middle_gives_the_frames_that_are_there(tmp_path: Path) -> None:
    clip = write_clip(tmp_path / "in.mkv", count=20, audio=None)
    data = clip.read_bytes()
    clip.write_bytes(data[: len(data) * 2 // 3])
    source = VideoSource(clip)
    assert 3 < len(list(source.pictures(96, 80, Fit.CROP))) < 20


@pytest.mark.parametrize("turns", [1, 2, 3])
def test_a_clip_filmed_sideways_comes_upright(tmp_path: Path, turns: int) -> None:
    clip = tmp_path / "in.mp4"
    upright = np.zeros((96, 80, 3), np.uint8)
    upright[:32] = 255
    write_rotated(clip, np.rot90(upright, -turns), turns * 90)
    size = (80, 96)
    (shown,) = VideoSource(clip).pictures(*size, Fit.CROP)
    assert shown.image.shape == (96, 80, 3)
    assert shown.image[:24].mean() > 200
    assert shown.image[40:].mean() < 50


def write_rotated(path: Path, stored: np.ndarray, angle: int) -> None:
    """One frame with a display matrix: patched into the track header, as PyAV cannot write it."""
    with av.open(str(path), "w") as container:
        stream = container.add_stream("libx264", rate=25)
        stream.height, stream.width, stream.pix_fmt = *stored.shape[:2], "yuv420p"
        frame = av.VideoFrame.from_ndarray(np.ascontiguousarray(stored), format="rgb24")
        container.mux(stream.encode(frame))
        container.mux(stream.encode(None))
    cos, sin = {90: (0, 1), 180: (-1, 0), 270: (0, -1)}[angle]
    matrix = np.array([cos << 16, -sin << 16, 0, sin << 16, cos << 16, 0, 0, 0, 1 << 30], ">i4").tobytes()
    data = path.read_bytes()
    at = data.index(b"tkhd") + 4 + 40
    path.write_bytes(data[:at] + matrix + data[at + 36 :])


def test_images_of_a_folder_come_in_natural_order(tmp_path: Path) -> None:
    for number in (10, 2, 1):
        write_image(tmp_path / f"frame-{number}.png", np.full((16, 16, 3), number * 20, np.uint8))
    (tmp_path / "notes.txt").write_text("no image")
    source = ImagesSource.of_folder(tmp_path, Fraction(10))
    pictures = list(source.pictures(16, 16, Fit.CROP))
    assert [int(item.image[0, 0, 0]) for item in pictures] == [20, 40, 200]
    assert [item.presentation_s for item in pictures] == pytest.approx([0, 0.1, 0.2])


def test_an_image_is_written_and_read_bit_exact(tmp_path: Path) -> None:
    image = picture(3, 40, 24)
    write_image(tmp_path / "image.png", image)
    np.testing.assert_array_equal(read_image(tmp_path / "image.png").to_ndarray(format="rgb24"), image)


def test_a_folder_is_written_as_numbered_images(tmp_path: Path) -> None:
    source = VideoSource(write_clip(tmp_path / "in.mp4", count=3, audio=None))
    copy(source, tmp_path / "out")
    assert [path.name for path in sorted((tmp_path / "out").iterdir())] == [
        "frame-000000.png",
        "frame-000001.png",
        "frame-000002.png",
    ]


@pytest.mark.parametrize(
    ("fit", "expected"),
    [(Fit.KEEP, (128, 64)), (Fit.CROP, (128, 64)), (Fit.PAD, (64, 32)), (Fit.STRETCH, (64, 64))],
)
def test_a_picture_keeps_its_shape_unless_it_is_stretched(fit: Fit, expected: tuple[int, int]) -> None:
    assert fitted_size((200, 100), (64, 64), Fraction(1), fit) == expected


def test_pixels_that_are_not_square_are_made_square() -> None:
    assert fitted_size((100, 100), (64, 64), Fraction(2), Fit.PAD) == (64, 32)


@pytest.mark.parametrize("fit", list(Fit))
def test_every_fit_gives_the_size_asked_for(tmp_path: Path, fit: Fit) -> None:
    clip = write_clip(tmp_path / "in.mp4", count=1, width=120, height=46, audio=None)
    (item,) = VideoSource(clip).pictures(64, 72, fit)
    assert item.image.shape == (72, 64, 3)


def test_padding_is_black_and_even(tmp_path: Path) -> None:
    write_image(tmp_path / "in.png", np.full((32, 64, 3), 255, np.uint8))
    (item,) = ImagesSource.of_folder(tmp_path).pictures(64, 64, Fit.PAD)
    assert item.image[:16].max() == 0
    assert item.image[48:].max() == 0
    assert item.image[17:47].min() == 255


def test_input_and_output_stand_side_by_side() -> None:
    left, right = np.zeros((8, 6, 3), np.uint8), np.full((8, 6, 3), 9, np.uint8)
    both = side_by_side(left, right)
    assert both.shape == (8, 12, 3)
    assert both[:, :6].max() == 0
    assert both[:, 6:].min() == 9


@pytest.mark.parametrize("content", [b"", b"not a video"])
def test_a_file_that_is_no_video_is_named_in_the_error(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "in.mp4").write_bytes(content)
    with pytest.raises(MediaError, match=r"in\.mp4: cannot be opened"):
        open_source(str(tmp_path / "in.mp4"))


def test_missing_input_empty_folder_and_unknown_output_are_refused(tmp_path: Path) -> None:
    with pytest.raises(MediaError, match="no such file"):
        open_source(str(tmp_path / "none.mp4"))
    with pytest.raises(MediaError, match="no images"):
        open_source(str(tmp_path))
    clip = VideoSource(write_clip(tmp_path / "in.mp4", count=1, audio=None))
    with pytest.raises(MediaError, match="write to"):
        open_target("out.xyz", clip)


def test_a_camera_that_is_not_there_is_named_in_the_error() -> None:
    with pytest.raises(MediaError, match="camera /nonexistent/camera"):
        open_source("-", device="/nonexistent/camera")


@pytest.mark.parametrize(
    ("source", "room", "size"),
    [
        ((1920, 1080), Room(256 * 256), (336, 192)),
        ((1080, 1920), Room(256 * 256), (192, 336)),
        ((1920, 1080), Room(512 * 512, multiple=64), (640, 384)),
        ((640, 480), Room(256 * 256, multiple=32), (288, 224)),
        ((256, 256), Room(256 * 256, multiple=32), (256, 256)),
        ((4000, 100), Room(256 * 256), (1024, 64)),
    ],
)
def test_a_session_gets_the_shape_of_the_source(
    source: tuple[int, int], room: Room, size: tuple[int, int]
) -> None:
    assert room.snapped(source) == size


@pytest.mark.parametrize("source", [(1920, 1080), (1280, 720), (640, 480), (1440, 1920), (2560, 1080)])
@pytest.mark.parametrize("room", [Room(256 * 256), Room(256 * 256, 32), Room(512 * 512, 64)])
def test_most_of_a_picture_is_kept_and_most_pixels_are_used(source: tuple[int, int], room: Room) -> None:
    width, height = room.snapped(source)
    assert width % room.multiple == height % room.multiple == 0
    assert 0.65 * room.max_pixels < width * height <= room.max_pixels
    ratio = (source[0] * height) / (source[1] * width)
    assert min(ratio, 1 / ratio) > (0.9 if room.multiple > 8 else 0.97)


@pytest.mark.parametrize(
    ("target", "fit", "words"),
    [
        ((320, 180), Fit.KEEP, "become 320x180"),
        ((256, 256), Fit.CROP, "43.8% of the width cut off"),
        ((256, 256), Fit.STRETCH, "stretched by 77.8%, in height"),
        ((256, 256), Fit.PAD, "43.8% of them black, above and below"),
    ],
)
def test_what_becomes_of_the_shape_is_told(target: tuple[int, int], fit: Fit, words: str) -> None:
    assert told_fit((1920, 1080), target, fit).endswith(words)


@pytest.mark.parametrize("turns", [0, 1, 2, 3])
def test_the_size_of_a_source_is_that_of_the_upright_picture(tmp_path: Path, turns: int) -> None:
    upright = np.zeros((96, 80, 3), np.uint8)
    clip = tmp_path / "in.mp4"
    if turns:
        write_rotated(clip, np.rot90(upright, -turns), turns * 90)
    else:
        write_clip(clip, count=1, width=80, height=96, audio=None)
    assert VideoSource(clip).size == (80, 96)
