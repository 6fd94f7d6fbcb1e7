"""MIDI and OSC on the page, in Debian's Chromium. The MIDI controller is a stand-in that the test injects."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
from playwright.sync_api import expect
from support.browser_tab import Gateway, Tab

pytestmark = pytest.mark.integration

Open = Callable[..., Tab]

STAND_IN = """
(() => {
  const input = { name: "A desk of knobs", state: "connected", onmidimessage: null };
  const access = { inputs: new Map([["1", input]]), onstatechange: null };
  window.midi = (...data) => input.onmidimessage({ data: Uint8Array.from(data) });
  window.midiAsked = 0;
  navigator.requestMIDIAccess = async () => {
    window.midiAsked += 1;
    if (window.midiRefused) throw new DOMException("no", "SecurityError");
    return access;
  };
})()
"""


def midi(studio: Tab, *data: int) -> None:
    studio.page.evaluate("data => window.midi(...data)", list(data))


def turns(gateway: Gateway) -> list[dict[str, Any]]:
    return [one for one in gateway.fake.asked if one["type"] == "turn"]


def with_controller(open_studio: Open, gateway: Gateway) -> Tab:
    """A page with a controller plugged in; its sample clip runs."""
    studio = open_studio("about:blank")
    studio.page.add_init_script(STAND_IN)
    studio.page.goto(gateway.url)
    studio.start()
    return studio


def test_a_knob_is_learned_by_touch_turns_a_dial_and_is_kept(open_studio: Open, gateway: Gateway) -> None:
    studio = with_controller(open_studio, gateway)
    panel = studio.panel("Presets")
    assert studio.page.evaluate("window.midiAsked") == 0, "no browser is asked for what nobody wants"
    panel.get_by_role("button", name="Use MIDI").click()
    expect(panel).to_contain_text("A desk of knobs")
    panel.get_by_role("button", name="Learn", exact=True).click()
    look = studio.panel("Look")
    strength = look.get_by_label("Strength", exact=True)
    before = strength.input_value()
    strength.click()
    assert strength.input_value() == before, "a touch chooses, and changes nothing"
    expect(look).to_contain_text("Now move a knob, or press a key, for strength")
    midi(studio, 0xB0, 74, 0)
    expect(look).to_contain_text("Touch a slider")
    studio.panel("Presets").get_by_role("button", name="Preset 3 empty").click()
    midi(studio, 0x90, 36, 100)
    look.get_by_role("button", name="Done learning").click()
    mapped = panel.get_by_role("list", name="Mapped")
    expect(mapped).to_contain_text("CC 74")
    expect(mapped).to_contain_text("preset 3")
    assert turns(gateway) == []
    midi(studio, 0xB0, 74, 127)
    midi(studio, 0xB0, 75, 127)
    studio.until(lambda: len(turns(gateway)) == 1, "one turn")
    assert turns(gateway) == [{"type": "turn", "tile": 0, "name": "strength", "share": 1}]
    studio.page.keyboard.press("Shift+3")
    expect(panel.get_by_role("button", name="Preset 3 pencil sketch")).to_be_visible()
    studio.panel("Look").get_by_role("button", name="neon", exact=True).click()
    studio.until(lambda: gateway.fake.painted[-1][2] == "neon lights", "another look")
    studio.page.reload()
    studio.is_live()
    midi(studio, 0x90, 36, 100)
    studio.until(lambda: gateway.fake.painted[-1][2] == "pencil sketch", "the preset under the pad")
    midi(studio, 0xB0, 74, 0)
    studio.until(lambda: len(turns(gateway)) == 2, "the knob after a reload")
    studio.panel("Presets").get_by_role("button", name="Forget CC 74").click()
    expect(mapped).not_to_contain_text("CC 74")


def test_a_browser_that_gives_no_midi_says_why(open_studio: Open, gateway: Gateway) -> None:
    studio = with_controller(open_studio, gateway)
    panel = studio.panel("Presets")
    studio.page.evaluate("window.midiRefused = true")
    panel.get_by_role("button", name="Use MIDI").click()
    expect(panel).to_contain_text("MIDI was not allowed")
    studio.page.evaluate("navigator.requestMIDIAccess = undefined")
    panel.get_by_role("button", name="Use MIDI").click()
    expect(panel).to_contain_text("This browser has no Web MIDI")


def test_what_a_controller_has_turned_is_on_the_page_at_its_frame_and_in_a_take(
    open_studio: Open, gateway: Gateway
) -> None:
    studio = open_studio(gateway.url)
    studio.start()
    take = studio.panel("Take")
    take.get_by_role("button", name="Start a take").click()
    expect(studio.page.locator(".badge")).to_contain_text("TAKE")
    (wall,) = gateway.fake.walls.values()

    def say(message: dict[str, Any]) -> None:
        assert wall.socket is not None
        gateway.run(wall.socket.send_json(message))

    turned = {"type": "turned", "tile": 0, "frame": 777, "asked": {"strength": 0.85}, "rejected": None}
    say(
        {
            **turned,
            "settings": {**wall.tiles[0].settings, "strength": 0.85},
            "advice": "",
            "unknown_words": [],
        }
    )
    expect(take).to_contain_text("strength 0.85")
    look = studio.panel("Look")
    expect(look.get_by_label("Strength", exact=True)).to_have_value("0.85")
    expect(look).to_contain_text("#777")
    say({"type": "recall", "tile": 0, "place": 5})
    said = studio.page.get_by_role("region", name="What went wrong")
    expect(said).to_contain_text("There is none in this place.")
    say(
        {"type": "trouble", "about": "osc", "title": "OSC /rearview/1/x", "help": "there is no such setting."}
    )
    expect(said).to_contain_text("OSC /rearview/1/x")
    expect(studio.panel("Presets")).to_contain_text("--osc 9000")


def test_two_tabs_keep_what_each_of_them_has_learned(open_studio: Open, gateway: Gateway) -> None:
    studio = with_controller(open_studio, gateway)
    other = Tab.watching(studio.page.context.new_page())
    other.page.add_init_script(STAND_IN)
    other.page.goto(gateway.url)
    other.start()
    for number, tab in enumerate((studio, other)):
        panel = tab.panel("Presets")
        panel.get_by_role("button", name="Use MIDI").click()
        panel.get_by_role("button", name="Learn", exact=True).click()
        panel.get_by_role("button", name=f"Preset {number + 1} empty").click()
        midi(tab, 0x90, 36 + number, 100)
    for tab in (studio, other):
        mapped = tab.page.get_by_role("list", name="Mapped")
        expect(mapped).to_contain_text("preset 1")
        expect(mapped).to_contain_text("preset 2")
    assert other.errors == []
