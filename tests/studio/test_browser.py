"""The studio in Debian's Chromium, before a gateway that paints by arithmetic."""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from pathlib import Path

import av
import numpy as np
import pytest
from playwright.sync_api import expect
from support.browser_tab import CAMERA_COLOUR, CLIP_COLOUR, WITHIN_MS, Gateway, Tab
from support.fake_gateway import SAMPLE, tint_of

pytestmark = pytest.mark.integration

Open = Callable[..., Tab]


def painted(colour: tuple[int, int, int], prompt: str) -> np.ndarray:
    """What the fake gateway makes of a colour."""
    return np.array(colour) * 0.45 + np.array(tint_of(prompt)) * 0.55


def is_near(seen: np.ndarray, wanted: np.ndarray | tuple[int, int, int], within: float = 26) -> bool:
    return bool(np.abs(seen - np.array(wanted)).max() < within)


def test_frames_return_beside_their_input(open_studio: Open, gateway: Gateway) -> None:
    studio = open_studio(gateway.url)
    studio.start("Camera")
    before = studio.frame
    studio.until(lambda: studio.frame > before + 10, "ten more frames")
    studio.until(lambda: is_near(studio.colour(0.05, 0.4), CAMERA_COLOUR), "the input on the left")
    pencil = painted(CAMERA_COLOUR, "pencil sketch")
    studio.until(lambda: is_near(studio.colour(0.6, 0.95), pencil), "the output")


def test_a_prompt_shows_at_its_frame(open_studio: Open, gateway: Gateway) -> None:
    studio = open_studio(gateway.url)
    studio.start()
    studio.page.get_by_role("button", name="neon", exact=True).click()
    effect = studio.page.get_by_label("Prompt", exact=True).first.locator(".card-head .effect")
    expect(effect).to_contain_text("#", timeout=WITHIN_MS)
    said = int("".join(one for one in effect.inner_text().split("#")[1] if one.isdigit()))
    neon = painted(CAMERA_COLOUR, "neon lights")
    studio.until(lambda: is_near(studio.colour(0.6, 0.95), neon), "the new look")
    first = next(frame for _, frame, prompt in gateway.fake.painted if prompt == "neon lights")
    assert said == first


def test_every_tile_takes_the_shape_of_another_source(open_studio: Open, gateway: Gateway) -> None:
    studio = open_studio(gateway.url)
    studio.start("Camera")
    studio.page.get_by_role("button", name="Add a look").click()
    expect(studio.page.locator(".tile")).to_have_count(2)
    studio.panel("Motion").get_by_role("button", name="Sample").click()
    (wall,) = gateway.fake.walls.values()
    looks = [tile.settings["prompt"] for tile in wall.tiles.values()]
    studio.until(lambda: len(gateway.fake.sizes_asked) == 4, "another size in both sessions")
    sizes = gateway.fake.sizes_asked
    assert sizes[0] == sizes[1] != (256, 256)
    assert sizes[2:] == [(256, 256)] * 2
    assert [tile.settings["prompt"] for tile in wall.tiles.values()] == looks
    before = len(gateway.fake.painted)
    studio.until(lambda: len(gateway.fake.painted) > before + 20, "pictures")
    assert gateway.fake.misfits == []
    wide = studio.page.locator(".figures dd").last
    expect(wide).to_have_text("256 × 256")
    studio.panel("Motion").get_by_role("button", name="Sample").click()
    before = len(gateway.fake.painted)
    studio.until(lambda: len(gateway.fake.painted) > before + 20, "pictures")
    assert len(gateway.fake.sizes_asked) == 4, "the same shape goes on"


def test_two_tabs_never_see_each_others_pictures(
    open_studio: Open, gateway: Gateway, blue_clip: Path
) -> None:
    red, blue = open_studio(gateway.url), open_studio(gateway.url)
    red.start("Camera")
    blue.page.set_input_files("input[type=file]", str(blue_clip))
    blue.is_live()
    for studio in (red, blue):
        studio.look("Picture")
    wanted = {"red": painted(CAMERA_COLOUR, "pencil sketch"), "blue": painted(CLIP_COLOUR, "pencil sketch")}
    studio_of = {"red": red, "blue": blue}
    for name, studio in studio_of.items():
        studio.until(lambda s=studio, n=name: is_near(s.colour(0.1, 0.9), wanted[n], 34), f"{name} picture")
    for _ in range(5):
        for name, studio in studio_of.items():
            assert is_near(studio.colour(0.1, 0.9), wanted[name], 34), name
    assert len(gateway.fake.walls) == 2


def test_a_reload_goes_on_with_the_same_wall(open_studio: Open, gateway: Gateway) -> None:
    studio = open_studio(gateway.url)
    studio.start()
    studio.page.get_by_role("button", name="blueprint", exact=True).click()
    studio.until(lambda: any(one[2] == "blueprint" for one in gateway.fake.painted), "the look")
    studio.page.reload()
    studio.is_live()
    assert len(gateway.fake.walls) == 1
    expect(studio.page.locator("#prompt")).to_have_value("blueprint")
    assert [one["type"] for one in gateway.fake.asked].count("open") == 1


def test_a_killed_replica_shows_a_pause_and_goes_on(open_studio: Open, gateway: Gateway) -> None:
    studio = open_studio(gateway.url)
    studio.start()
    health = studio.panel("Health")
    studio.note_states()
    health.get_by_role("button", name="Kill a replica").first.click()
    expect(studio.page.locator(".state")).to_contain_text("It goes on", timeout=WITHIN_MS)
    at = next(at for at, said in enumerate(studio.states) if "It goes on" in said)
    assert any("A pause" in said for said in studio.states[:at])
    expect(health.get_by_label("Pauses")).to_contain_text("lost")
    before = studio.frame
    studio.until(lambda: studio.frame > before + 5, "pictures after it")


def test_a_pause_without_a_cause_is_shown_while_it_lasts_and_not_counted(
    open_studio: Open, gateway: Gateway
) -> None:
    studio = open_studio(gateway.url)
    studio.start()
    studio.until(lambda: studio.frame > 20, "what is usual here")
    health = studio.panel("Health")
    studio.note_states()
    gateway.fake.paused_until_s = time.monotonic() + 4
    studio.until(lambda: any("A pause" in said for said in studio.states), "a pause")
    before = studio.frame
    studio.until(lambda: studio.frame > before + 5, "pictures after it")
    expect(studio.page.locator(".state")).to_have_count(0)
    expect(health.get_by_label("Pauses")).to_have_count(0)


def test_a_lost_connection_is_taken_up_again(open_studio: Open, gateway: Gateway) -> None:
    studio = open_studio(gateway.url)
    studio.start()
    before = studio.frame
    gateway.run(gateway.fake.cut_all())
    studio.is_live()
    studio.until(lambda: studio.frame > before + 10, "pictures after it")
    assert len(gateway.fake.walls) == 1


def test_a_wall_is_cut_and_faded_and_watched(open_studio: Open, gateway: Gateway) -> None:
    studio = open_studio(gateway.url)
    studio.start()
    for count in (2, 3):
        studio.page.get_by_role("button", name="Add a look").first.click()
        expect(studio.page.locator(".tile")).to_have_count(count)
    studio.until(lambda: [one["type"] for one in gateway.fake.asked].count("open") == 3, "three sessions")
    prompts = [one["options"]["settings"]["prompt"] for one in gateway.fake.asked if one["type"] == "open"]
    assert len(set(prompts)) == 3
    studio.look("Program")
    viewer = studio.page.context.new_page()
    viewer.goto(f"{gateway.url}/view/{next(iter(gateway.fake.walls.values())).viewer}")
    studio.page.bring_to_front()
    studio.page.locator("body").press("3")
    studio.until(lambda: is_near(studio.colour(0.1, 0.9), painted(CAMERA_COLOUR, prompts[2])), "the program")
    expect(studio.page.locator(".tile[data-program]")).to_have_count(1)
    viewer.bring_to_front()
    watched = Tab(viewer)
    feed = viewer.locator("#feed")
    watched.until(lambda: int(feed.get_attribute("data-frame") or 0) > 0, "the viewer's picture")
    seen = gateway.fake.asked
    assert {"a": 2, "b": None, "mix": 0, "fade_ms": 0, "type": "program"} in seen
    studio.page.bring_to_front()
    studio.panel("Mixer")
    studio.page.get_by_role("button", name="Fade to 1").click()
    first = painted(CAMERA_COLOUR, prompts[0])
    studio.until(lambda: is_near(studio.colour(0.1, 0.9), first), "the faded program")
    studio.page.get_by_role("button", name="Close tile 2").click()
    expect(studio.page.locator(".tile")).to_have_count(2)


def test_a_take_is_saved_loaded_and_replayed_at_the_same_frames(
    open_studio: Open, gateway: Gateway, tmp_path: Path
) -> None:
    studio = open_studio(gateway.url)
    studio.start("Sample clip")
    panel = studio.panel("Take")
    panel.get_by_role("button", name="Start a take").click()
    studio.panel("Look").get_by_role("button", name="neon", exact=True).click()
    studio.until(lambda: gateway.fake.painted[-1][2] == "neon lights", "the change")
    panel = studio.panel("Take")
    panel.get_by_role("button", name="End the take").click()
    expect(panel.locator(".command")).to_contain_text(f"rearview translate --score take.json {SAMPLE}")
    with studio.page.expect_download() as download:
        panel.get_by_role("button", name="Save the take").click()
    download.value.save_as(tmp_path / "take.json")
    score = json.loads((tmp_path / "take.json").read_text(encoding="utf-8"))
    assert score["format"] == "rearview-score"
    assert score["open"]["settings"]["prompt"] == "pencil sketch"
    (event,) = score["events"]
    assert event["settings"] == {"prompt": "neon lights"}
    panel.get_by_label("Load a take").set_input_files(str(tmp_path / "take.json"))
    begun = len(gateway.fake.painted)
    panel.get_by_role("button", name="Replay the take live").click()
    studio.until(lambda: frames_of(gateway, begun, "pencil sketch") != [], "its beginning")
    first = frames_of(gateway, begun, "pencil sketch")[0]
    studio.until(lambda: frames_of(gateway, begun, "neon lights", first) != [], "its change")
    assert frames_of(gateway, begun, "neon lights", first)[0] - first == event["frame"]


def test_a_take_of_a_loop_says_what_a_render_leaves_out(
    open_studio: Open, gateway: Gateway, blue_clip: Path
) -> None:
    studio = open_studio(gateway.url)
    studio.page.set_input_files("input[type=file]", str(blue_clip))
    studio.is_live()
    panel = studio.panel("Take")
    panel.get_by_role("button", name="Start a take").click()
    expect(studio.page.locator(".badge")).to_contain_text("TAKE")
    studio.page.wait_for_timeout(2600)
    studio.panel("Look").get_by_role("button", name="neon", exact=True).click()
    studio.until(lambda: gateway.fake.painted[-1][2] == "neon lights", "the change")
    panel = studio.panel("Take")
    panel.get_by_role("button", name="End the take").click()
    expect(studio.page.get_by_role("status").last).to_have_text("The take has 1 change")
    expect(panel.locator(".note")).to_contain_text("times in a loop")
    expect(panel.locator(".note")).to_contain_text("1 change after 0:02 is left out")


def frames_of(gateway: Gateway, begun: int, prompt: str, after: int = 0) -> list[int]:
    """Frames painted in a prompt, of those that were painted since."""
    since = gateway.fake.painted[begun:]
    return [frame for _, frame, one in since if one == prompt and frame > after]


def test_a_snapshot_and_a_recording_are_kept(open_studio: Open, gateway: Gateway, tmp_path: Path) -> None:
    studio = open_studio(gateway.url)
    studio.start()
    with studio.page.expect_download() as download:
        studio.page.get_by_role("button", name="Snapshot").click()
    download.value.save_as(tmp_path / "one.png")
    assert (tmp_path / "one.png").read_bytes().startswith(b"\x89PNG")
    studio.page.get_by_role("button", name="Record a video").click()
    before = studio.frame
    studio.until(lambda: studio.frame > before + 25, "something to record")
    with studio.page.expect_download() as download:
        studio.page.get_by_role("button", name="Stop recording").click()
    path = tmp_path / download.value.suggested_filename
    download.value.save_as(path)
    with av.open(str(path)) as container:
        pictures = [frame.to_ndarray(format="rgb24") for frame in container.decode(video=0)]
    assert len(pictures) >= 10
    assert is_near(pictures[-1][100:140].mean((0, 1)), painted(CAMERA_COLOUR, "pencil sketch"), 34)


def test_a_mix_is_sent_with_its_weights_and_a_word_that_is_not_known_is_marked(
    open_studio: Open, gateway: Gateway
) -> None:
    studio = open_studio(gateway.url)
    studio.start()
    page = studio.page
    page.locator("#prompt").fill("oil painting of a dragon")
    expect(page.locator(".prompt-back mark")).to_have_text("dragon")
    expect(page.locator(".note")).to_contain_text("dragon")
    page.get_by_role("button", name="SD-Turbo follows any prompt").click()
    sheet = page.get_by_role("dialog")
    expect(sheet).to_contain_text("2.6 GB")
    expect(sheet).to_contain_text("Stability AI Community License")
    sheet.get_by_role("button", name="Fetch 2.6 GB: SD-Turbo").click()
    expect(sheet.locator("progress")).to_be_visible()
    sheet.get_by_role("button", name="Cancel fetching SD-Turbo").click()
    page.keyboard.press("Escape")
    page.locator("#prompt").fill("oil painting")
    page.locator("#prompt").press("Enter")
    page.get_by_role("button", name="Mix another in").click()
    page.get_by_role("button", name="neon", exact=True).click()
    studio.until(lambda: any("prompts" in one.get("settings", {}) for one in gateway.fake.asked), "the mix")
    mixes = [asked for one in gateway.fake.asked if (asked := one.get("settings", {}).get("prompts"))]
    mix = mixes[-1]
    assert [one["prompt"] for one in mix] == ["oil painting", "neon lights"]
    assert all(one["weight"] > 0 for one in mix)
