"""The reference card in Debian's Chromium: a picture is made small, sent, shown and taken away."""

from __future__ import annotations

import base64
import io
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from playwright.sync_api import expect
from rearview.contract.reference import ImageFile
from rearview.ingress.references import check_picture
from support.browser_tab import WITHIN_MS, Gateway, Tab

pytestmark = pytest.mark.integration

Open = Callable[..., Tab]


def asked(gateway: Gateway, name: str) -> list[object]:
    """The values that controls have named, in order."""
    settings = [one.get("settings", {}) for one in gateway.fake.asked if one["type"] == "control"]
    return [each[name] for each in settings if name in each]


def test_a_picture_is_followed_louder_and_no_more(
    open_studio: Open, gateway: Gateway, tmp_path: Path
) -> None:
    noise = np.random.default_rng(0).integers(0, 256, (900, 1400, 3), dtype=np.uint8)
    noise[:, 400:1000] = (30, 160, 60)
    Image.fromarray(noise).save(tmp_path / "face.png")
    (tmp_path / "text.png").write_text("hello")
    studio = open_studio(gateway.url)
    studio.start()
    card = studio.page.get_by_label("Reference", exact=True)
    picker = card.get_by_label("Choose a reference picture")
    picker.set_input_files(tmp_path / "text.png")
    expect(card.locator(".note")).to_contain_text("text.png cannot be read", timeout=WITHIN_MS)
    picker.set_input_files(tmp_path / "face.png")
    expect(card.get_by_role("img")).to_be_visible(timeout=WITHIN_MS)
    expect(card.locator(".note")).to_have_count(0)
    (file,) = asked(gateway, "reference")
    assert isinstance(file, dict)
    check_picture("reference", ImageFile(file["base64"]))
    levels = np.asarray(Image.open(io.BytesIO(base64.b64decode(file["base64"]))))
    assert levels.shape == (224, 224, 3)
    assert np.abs(levels[112, 112].astype(int) - (30, 160, 60)).max() < 12
    card.get_by_label("How much").fill("0.6")
    studio.until(lambda: 0.6 in asked(gateway, "reference_scale"), "the scale")
    card.get_by_role("button", name="Follow it no more").click()
    expect(card.get_by_role("img")).to_have_count(0, timeout=WITHIN_MS)
    assert asked(gateway, "reference")[-1] == {"base64": ""}
