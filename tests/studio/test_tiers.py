"""Two tiers, whole: SD-Turbo's layout is fetched from a hub on loopback, started beside, and gone over to."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import simplejpeg
from rearview.cli.studio_models import HubModels
from support.hub import serve_hub
from support.raw_stream import running
from support.studio import studio
from support.tiny_turbo import write_tiny_turbo

pytestmark = [pytest.mark.integration, pytest.mark.timeout(240)]

SIDE = 64


async def test_a_stream_goes_on_with_a_model_that_was_fetched_meanwhile(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("REARVIEW_MODELS", str(tmp_path / "models"))
    monkeypatch.setattr("support.studio.DEADLINE_S", 150.0)
    folder = write_tiny_turbo(tmp_path / "hub")
    grey = simplejpeg.encode_jpeg(np.full((SIDE, SIDE, 3), 90, np.uint8), 90, "RGB", "420")
    repositories = {"stabilityai/sd-turbo": folder, "madebyollin/taesd": folder / "vae"}
    with serve_hub(repositories) as hub:
        async with (
            running() as service,
            studio(service.address, models=HubModels(endpoint=hub.endpoint)) as under,
            under.page() as page,
        ):
            await page.open(0, drop_policy="lossless", settings={"prompt": "a boat", "seed": 3})
            offer = page.said("model", id="sd-turbo")[0]
            assert (offer["state"], offer["bytes_total"]) == ("absent", 0), "nobody was asked yet"
            assert "Stability" in offer["licence"]
            await page.say({"type": "model", "id": "sd-turbo", "action": "look"})
            await page.wait(lambda: page.said("model", id="sd-turbo")[-1]["bytes_total"] > 10_000)
            await page.say({"type": "model", "id": "sd-turbo", "action": "fetch"})
            await page.until("model", id="sd-turbo", state="ready")
            await page.say({"type": "model", "id": "sd-turbo", "action": "use"})
            index = 0
            while not page.said("opened", tile=0, model="sd-turbo"):
                await page.frame(index, grey)
                index += 1
                await page.wait(lambda sent=index: page.num_answers >= sent)  # type: ignore[misc]
            first = page.said("opened", tile=0)[1]
            for _ in range(3):
                await page.frame(index, grey)
                index += 1
            await page.wait(lambda: page.num_answers == index)
            assert page.said("dropped") == []
            assert page.answers() == {0: list(range(index))}
            assert (first["settings"]["prompt"], first["settings"]["seed"]) == ("a boat", 3)
            assert first["unknown_words"] == [], "it takes any prompt"
            for picture in page.pictures:
                if picture.frame < first["frame"]:
                    assert picture.picture == grey, "the null model gives it back"
                else:
                    shown = simplejpeg.decode_jpeg(picture.picture)
                    assert shown.shape == (SIDE, SIDE, 3)
                    assert picture.picture != grey
            serving = page.said("serving")[-1]
            assert (serving["id"], serving["model"]["max_steps"]) == ("sd-turbo", 1)
