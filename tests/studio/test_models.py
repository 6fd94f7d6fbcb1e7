"""Another model beside the running one: fetched, started, gone over to in the middle of a stream, left."""

from __future__ import annotations

import asyncio
import contextlib
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field

import pytest
from rearview.contract.watermark import Watermark
from rearview.errors import ConfigError
from rearview.studio.models import Offer
from rearview.studio.service import Endpoint
from support.raw_stream import assert_nothing_held, eventually, running
from support.studio import studio

pytestmark = pytest.mark.integration

CHAIN = {"name": "chain", "checkpoint": "chain"}
OTHER = {"name": "other", "checkpoint": "chain", "max_steps": 1}
ONE_STEP = (("encode", "denoise-0", "decode"),)
LOSSLESS = {"drop_policy": "lossless"}


@dataclass
class TestSource:
    """Models that are at some address, or are not here yet."""

    __test__ = False
    addresses: dict[str, str]
    here: set[str] = field(default_factory=set)
    going_on: threading.Event = field(default_factory=threading.Event)
    running: list[str] = field(default_factory=list)
    looks: int = 0

    def offers(self) -> Sequence[Offer]:
        return [Offer(name, name.title(), "Apache-2.0", 0) for name in (*self.addresses, "broken")]

    def is_here(self, model: str) -> bool:
        return model in self.here

    def look(self, model: str) -> int:
        self.looks += 1
        time.sleep(0.2)
        return 1000

    def fetch(self, model: str, on_bytes: Callable[[int, int], None], cancel: threading.Event) -> None:
        for done in range(0, 1000, 100):
            on_bytes(done, 1000)
            if done == 500:
                while not (cancel.wait(0.01) or self.going_on.is_set()):
                    pass
            if cancel.is_set():
                raise ConfigError("cancelled")
        if model == "broken":
            raise ConfigError("its checksum is another one")
        self.here.add(model)

    @contextlib.contextmanager
    def start(self, model: str, on_progress: Callable[[str], None]) -> Iterator[Endpoint]:
        on_progress("loading the model")
        self.running.append(model)
        yield Endpoint(self.addresses[model])
        self.running.remove(model)


async def test_tiles_go_on_with_another_model_at_a_frame_that_they_name_and_none_is_lost() -> None:
    async with running(model=CHAIN) as one, running(model=OTHER, spans=ONE_STEP) as two:
        source = TestSource({"other": two.address}, here={"other"})
        async with studio(one.address, models=source) as under, under.page() as page:
            for tile in range(3):
                await page.open(tile, **LOSSLESS, settings={"prompt": "a", "steps": 2})
            await page.say({"type": "control", "tile": 0, "id": 1, "settings": {"seed": 9, "prompt": "b"}})
            await page.until("applied")
            for index in range(60):
                if index == 10:
                    await page.say({"type": "model", "id": "other", "action": "use"})
                await page.frame(index)
                await asyncio.sleep(0.005)
            for tile in range(3):
                await page.until("opened", count=2, tile=tile)
            for index in range(60, 80):
                await page.frame(index)
            await page.wait(lambda: len(page.pictures) == 3 * 80)
            assert {tile: sorted(frames) for tile, frames in page.answers().items()} == {  # type: ignore[type-var]
                tile: list(range(80)) for tile in range(3)
            }
            for tile in range(3):
                before, after = page.said("opened", tile=tile)
                assert (before["model"], after["model"]) == ("chain", "other")
                assert after["settings"]["steps"] == 1, "it has no more"
                assert 10 <= after["frame"] <= 60
                for picture in (each for each in page.pictures if each.tile == tile):
                    mark = Watermark.read(picture.picture)[1]
                    assert mark is not None
                    assert (
                        mark.session_id
                        == (after if picture.frame >= after["frame"] else before)["session_id"]
                    )
            kept = page.said("opened", tile=0)[1]["settings"]
            assert (kept["prompt"], kept["seed"]) == ("b", 9), "what was changed meanwhile holds"
            assert [each["state"] for each in page.said("model", id="other")] == [
                "ready",
                "loading",
                "loading",
                "in_use",
            ]
            await assert_nothing_held(one)
            await page.say({"type": "model", "id": "chain", "action": "use"})
            await page.until("opened", count=3, tile=2)
            await page.frame(80)
            await page.wait(lambda: len(page.pictures) == 3 * 81)
            await page.until("model", id="other", state="ready", count=2)
            await assert_nothing_held(two)
            await eventually(lambda: source.running == [])


async def test_a_tile_that_the_other_model_refuses_stays_where_it_is() -> None:
    small = {"max_pixels": 64 * 64}
    async with running(model=CHAIN) as one, running(model=OTHER, spans=ONE_STEP, limits=small) as two:
        source = TestSource({"other": two.address}, here={"other"})
        async with studio(one.address, models=source) as under, under.page() as page:
            await page.open(0, **LOSSLESS, width=128)
            await page.open(1, **LOSSLESS)
            await page.say({"type": "model", "id": "other", "action": "use"})
            error = await page.until("error")
            assert (error["reason"], error["message"][:6]) == ("RESOLUTION_UNSUPPORTED", "tile 0")
            assert (await page.until("opened", count=2, tile=1))["model"] == "other"
            await page.frame(0)
            await page.wait(lambda: len(page.pictures) == 2)
            assert len(page.said("opened", tile=0)) == 1


async def test_a_model_is_fetched_stopped_gone_on_with_and_told_about() -> None:
    async with running() as service:
        source = TestSource({"other": service.address})
        async with studio(service.address, models=source) as under, under.page() as page:
            assert {each["id"]: each["state"] for each in page.said("model")} == {
                "other": "absent",
                "broken": "absent",
            }
            await page.say({"type": "model", "id": "other", "action": "use"})
            assert (await page.until("error"))["reason"] == "MODEL_UNKNOWN"
            for _ in range(20):
                await page.say({"type": "model", "id": "other", "action": "look"})
            await page.until("model", id="other", state="absent", bytes_total=1000)
            assert source.looks == 1, "whoever asks in a row asks once"
            await page.say({"type": "model", "id": "other", "action": "fetch"})
            await page.until("model", id="other", bytes_done=500)
            await page.say({"type": "model", "id": "other", "action": "cancel"})
            stopped = await page.until("model", id="other", state="absent", count=3)
            assert stopped["bytes_total"] == 1000, "what was known of it is forgotten"
            source.going_on.set()
            await page.say({"type": "model", "id": "other", "action": "fetch"})
            await page.until("model", id="other", state="ready")
            await page.say({"type": "model", "id": "broken", "action": "fetch"})
            failed = await page.until("model", id="broken", state="failed")
            assert failed["message"] == "its checksum is another one"
            await page.say({"type": "model", "id": "unheard-of", "action": "fetch"})
            await page.until("error", reason="MODEL_UNKNOWN", count=2)
            async with under.http.get(under.url + "/api/info") as response:
                listed = (await response.json())["models"]
            assert [(each["id"], each["state"]) for each in listed] == [
                (service.config.model.name, "ready"),
                ("other", "ready"),
                ("broken", "failed"),
            ]


async def test_a_model_that_did_not_start_may_be_tried_again() -> None:
    async with running() as service:
        source = TestSource({}, here={"broken"})
        async with studio(service.address, models=source) as under, under.page() as page:
            for times in (1, 2):
                await page.say({"type": "model", "id": "broken", "action": "use"})
                failed = await page.until("model", id="broken", state="failed", count=times)
                assert "did not start" in failed["message"]
                await page.until("error", reason="REPLICA_LOST", count=times)
                await page.say({"type": "model", "id": "broken", "action": "fetch"})
                await page.until("model", id="broken", state="ready", count=times + 1)


async def test_a_service_that_does_not_start_is_told_with_its_reason() -> None:
    @contextlib.contextmanager
    def fails(on_progress: Callable[[str], None]) -> Iterator[Endpoint]:
        on_progress("loading the model")
        raise ConfigError("model.checkpoint: is no model")
        yield

    async with studio(fails) as under, under.page() as page:
        said = await page.until("service", state="failed")
        assert said["message"] == "model.checkpoint: is no model"
        await page.say({"type": "open", "tile": 0, "options": {"settings": {"prompt": "a"}}})
        refused = await page.until("state", state="refused")
        assert "model.checkpoint" in refused["message"]


async def test_a_page_is_there_while_the_service_starts_and_its_tiles_wait_for_it() -> None:
    may_start = threading.Event()
    async with running() as service:

        @contextlib.contextmanager
        def slow(on_progress: Callable[[str], None]) -> Iterator[Endpoint]:
            on_progress("loading the model")
            assert may_start.wait(20)
            yield Endpoint(service.address)

        async with studio(slow) as under, under.page() as page:
            await page.until("service", state="starting", message="loading the model")
            await page.say({"type": "open", "tile": 0, "options": {"settings": {"prompt": "a"}}})
            await page.until("state", state="opening")
            may_start.set()
            await page.until("service", state="ready")
            await page.until("opened")
            await page.frame(0)
            await page.wait(lambda: len(page.pictures) == 1)
