"""Presets on the page, in Debian's Chromium, before a gateway that paints by arithmetic."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from playwright.sync_api import expect
from support.browser_tab import WITHIN_MS, Gateway, Tab

pytestmark = pytest.mark.integration

Open = Callable[..., Tab]


def one_preset(path: Path, **content: Any) -> str:
    """A file with a preset in place 1, in which `content` takes the place of what is there."""
    preset = {"place": 1, "name": "One", "model": "pocket", "settings": {}, **content}
    written = {"format": "rearview-presets", "version": 1, "presets": [preset]}
    path.write_text(json.dumps(written), encoding="utf-8")
    return str(path)


def test_a_look_is_saved_and_loaded_by_its_key_and_outlives_a_reload(
    open_studio: Open, gateway: Gateway
) -> None:
    studio = open_studio(gateway.url)
    studio.start()
    presets = studio.panel("Presets")
    studio.page.keyboard.press("Shift+2")
    expect(presets.get_by_role("button", name="Preset 2 pencil sketch")).to_be_visible()
    studio.panel("Look").get_by_role("button", name="neon", exact=True).click()
    studio.until(lambda: gateway.fake.painted[-1][2] == "neon lights", "another look")
    studio.page.reload()
    studio.is_live()
    studio.panel("Presets")
    studio.page.keyboard.press("2")
    studio.until(lambda: gateway.fake.painted[-1][2] == "pencil sketch", "the look that was saved")
    controls = [one["settings"] for one in gateway.fake.asked if one["type"] == "control"]
    assert controls == [{"prompt": "neon lights"}, {"prompt": "pencil sketch"}], "what differs, once"
    studio.panel("Look")
    studio.page.keyboard.press("1")
    expect(studio.page.get_by_role("status").last).to_have_text("Tile 1 is on program")
    expect(studio.panel("Presets").get_by_role("button", name="Preset 1 empty")).to_be_visible()


def test_presets_travel_in_a_file_and_say_what_does_not_fit(
    open_studio: Open, gateway: Gateway, tmp_path: Path
) -> None:
    studio = open_studio(gateway.url)
    studio.start()
    presets = studio.panel("Presets")
    presets.get_by_role("button", name="Save in 1").click()
    presets.get_by_label("Name of preset 1").fill("Opening")
    presets.get_by_label("Name of preset 1").press("Enter")
    expect(presets.get_by_role("button", name="Preset 1 Opening")).to_be_visible()
    with studio.page.expect_download() as download:
        presets.get_by_role("button", name="Save as a file").click()
    path = tmp_path / "presets.json"
    download.value.save_as(path)
    saved = json.loads(path.read_text(encoding="utf-8"))
    (one,) = saved["presets"]
    assert (one["place"], one["name"], one["settings"]["prompt"]) == (1, "Opening", "pencil sketch")
    assert one["motion"] == {"method": "streamv2v"}
    other = {**one, "place": 5, "name": "Gold", "model": "sdxl", "motion": {"method": "per_frame"}}
    other["settings"] = {**one["settings"], "prompt": "neon lights", "adapters": "gold", "steps": 9}
    path.write_text(json.dumps({**saved, "presets": [other]}), encoding="utf-8")
    presets.get_by_label("Load presets").set_input_files(str(path))
    pad = presets.get_by_role("button", name="Preset 5 Gold")
    pad.click()
    said = studio.page.get_by_role("region", name="What went wrong")
    expect(said).to_contain_text("It was made with sdxl")
    expect(said).to_contain_text("there is no adapter “gold”; 9 steps are cut to 4")
    studio.until(lambda: gateway.fake.painted[-1][2] == "neon lights", "what fits of it")
    opened = [each["options"] for each in gateway.fake.asked if each["type"] == "open"]
    assert (opened[-1]["method"], opened[-1]["settings"]["steps"]) == ("per_frame", 4)
    assert opened[-1]["settings"]["adapters"] == ""
    expect(presets.get_by_role("button", name="Preset 1 Opening")).to_be_visible()
    path.write_text("nothing", encoding="utf-8")
    presets.get_by_label("Load presets").set_input_files(str(path))
    expect(said).to_contain_text("this is no JSON file", timeout=WITHIN_MS)


def test_a_tile_whose_new_session_is_refused_goes_on_as_it_was(
    open_studio: Open, gateway: Gateway, tmp_path: Path
) -> None:
    studio = open_studio(gateway.url)
    studio.start()
    presets = studio.panel("Presets")
    unreadable = {"reference": {"base64": "no!"}, "prompt": "neon lights"}
    path = one_preset(tmp_path / "one.json", settings=unreadable, motion={"method": "per_frame"})
    presets.get_by_label("Load presets").set_input_files(path)
    presets.get_by_role("button", name="Preset 1 One").click()
    said = studio.page.get_by_role("region", name="What went wrong")
    expect(said).to_contain_text("Tile 1 goes on as it was")
    opened = [each["options"] for each in gateway.fake.asked if each["type"] == "open"]
    assert [one["method"] for one in opened] == ["streamv2v", "per_frame", "streamv2v"]
    before = len(gateway.fake.painted)
    studio.until(lambda: len(gateway.fake.painted) > before + 5, "pictures")
    assert gateway.fake.painted[-1][2] == "pencil sketch"
    studio.is_live()


def test_a_page_that_is_loaded_again_knows_how_its_tiles_relate_frames(
    open_studio: Open, gateway: Gateway
) -> None:
    studio = open_studio(gateway.url)
    studio.start()
    motion = studio.panel("Motion")
    motion.get_by_text("Leave out frames that look alike").click()
    studio.until(lambda: [one["type"] for one in gateway.fake.asked].count("open") == 2, "it begins anew")
    studio.is_live()
    studio.panel("Presets").get_by_role("button", name="Save in 1").click()
    studio.page.reload()
    studio.is_live()
    presets = studio.panel("Presets")
    presets.get_by_role("button", name="Preset 1 pencil sketch").click()
    expect(studio.page.get_by_role("status").last).to_have_text(
        "Preset 1, pencil sketch: the picture is so already"
    )
    presets.get_by_role("button", name="Save in 1").click()
    kept = json.loads(studio.page.evaluate("localStorage.getItem('presets')"))
    assert kept["presets"][0]["motion"] == {"method": "streamv2v", "similarity_filter": {}}
    assert [one["type"] for one in gateway.fake.asked].count("open") == 2


def test_two_tabs_keep_each_others_presets(open_studio: Open, gateway: Gateway) -> None:
    studio = open_studio(gateway.url)
    studio.start()
    other = Tab.watching(studio.page.context.new_page())
    other.page.goto(gateway.url)
    other.start()
    seen = other.panel("Presets")
    studio.panel("Presets").get_by_role("button", name="Save in 1").click()
    expect(seen.get_by_role("button", name="Preset 1 pencil sketch")).to_be_visible()
    other.page.keyboard.press("Shift+2")
    expect(seen.get_by_role("button", name="Preset 2 pencil sketch")).to_be_visible()
    kept = json.loads(other.page.evaluate("localStorage.getItem('presets')"))
    assert [one["place"] for one in kept["presets"]] == [1, 2]
    assert other.errors == []
