"""Every setting on its way to a server and back, also over lost connections."""

from __future__ import annotations

import contextlib
from collections.abc import AsyncIterator
from dataclasses import fields, replace
from typing import get_type_hints

import numpy as np
import pytest
from rearview.client import (
    CacheOptions,
    CacheSettings,
    Client,
    ControlApplied,
    Dropped,
    Guidance,
    Image,
    ImageFile,
    Method,
    NoiseRule,
    OpenOptions,
    Reconnect,
    Rewarm,
    SettingOptions,
    Settings,
    SettingsChange,
    SimilarityOptions,
    Translated,
    WeightedAdapters,
    WeightedControl,
    WeightedPrompt,
)
from rearview.client.options import request_of
from rearview.client.wire import opened as read_opened
from rearview.contract.opening import OpenRequest, RequestOptions
from rearview.errors import InvalidRequest, Reason
from rearview.schema import from_message, to_message
from rearview.schema.tables import OPEN, SETTINGS, TEMPORAL_CACHE
from rearview.v1 import settings_pb2
from rearview.v1 import translation_service_pb2 as pb
from support.fake_server import SIZE, FakeServer, Faults

pytestmark = [pytest.mark.integration, pytest.mark.timeout(30)]

QUICK = Reconnect(first_wait_s=0.01, max_wait_s=0.05, give_up_after_s=2.0, open_timeout_s=1.0)
EVERY = SettingsChange(
    prompt="clay",
    strength=0.7,
    steps=3,
    seed=2**63,
    noise_rule=NoiseRule.FRESH,
    guidance=Guidance.INITIALIZE,
    guidance_scale=1.3,
    delta=0.4,
    negative_prompt="blur",
    blend_frames=12,
    adapters="ink",
    jpeg_quality=70,
    timestep_indices=(22, 32, 45),
    controls=(WeightedControl("edges", 0.6), WeightedControl("depth")),
    width=SIZE,
    height=SIZE,
    reference=ImageFile.of(b"a face"),
    reference_scale=0.7,
    reference_mask=ImageFile.of(b"a mask"),
)
MIX = (WeightedPrompt("clay", 0.3), WeightedPrompt("neon", 1.1))
ADAPTER_MIX = (WeightedAdapters("ink", 0.6), WeightedAdapters("oil", -0.2))
MIXED = replace(
    EVERY, prompt=None, prompts=MIX, guidance=Guidance.FULL, adapters=None, adapter_mix=ADAPTER_MIX
)


def in_force(change: SettingsChange) -> Settings:
    """What the reply shows of a session that was opened with all of them."""
    return change.apply(Settings())


def read(message: settings_pb2.Settings) -> Settings:
    return from_message(SETTINGS, Settings, message, refuses=False)


@contextlib.asynccontextmanager
async def serving(faults: Faults | None = None) -> AsyncIterator[tuple[FakeServer, Client]]:
    async with FakeServer(faults) as server, Client(server.address, reconnect=QUICK) as client:
        yield server, client


def picture(value: int) -> Image:
    return np.full((SIZE, SIZE, 3), value, np.uint8)


@pytest.mark.parametrize("change", [EVERY, MIXED], ids=["prompt", "mix"])
def test_every_setting_travels_as_it_was_written(change: SettingsChange) -> None:
    message = settings_pb2.Settings.FromString(to_message(SETTINGS, change).SerializeToString())
    assert from_message(SETTINGS, SettingsChange, message, refuses=True) == change
    echo = settings_pb2.Settings.FromString(to_message(SETTINGS, in_force(change)).SerializeToString())
    assert read(echo) == in_force(change)
    assert read(echo).as_change() == change


def test_the_client_knows_every_setting_of_the_wire() -> None:
    on_the_wire = [field.name for field in settings_pb2.Settings.DESCRIPTOR.fields]
    assert [field.name for field in fields(SettingsChange)] == on_the_wire


def test_settings_that_are_not_set_are_absent() -> None:
    assert to_message(SETTINGS, SettingsChange()).ListFields() == []
    assert from_message(SETTINGS, SettingsChange, settings_pb2.Settings(), refuses=True) == SettingsChange()
    assert read(settings_pb2.Settings()) == Settings()


def test_the_options_of_a_temporal_cache_travel_as_they_were_written() -> None:
    for cache in (
        CacheOptions(),
        CacheOptions(Rewarm.RESET, Rewarm.KEEP, scene_detection=False, instant_start=True),
    ):
        message = pb.TemporalCache.FromString(to_message(TEMPORAL_CACHE, cache).SerializeToString())
        assert from_message(TEMPORAL_CACHE, CacheOptions, message, refuses=True) == cache
    assert [field.name for field in fields(CacheOptions)] == [
        field.name for field in pb.TemporalCache.DESCRIPTOR.fields
    ]


def test_what_is_not_asked_of_a_session_is_the_services_to_choose() -> None:
    request = request_of({"prompt": "clay", "strength": None, "answer_window": 3}, 7)
    assert request == OpenRequest(settings=SettingsChange(prompt="clay"), answer_credit=7)
    message = to_message(OPEN, request)
    assert from_message(OPEN, OpenRequest, message, refuses=True) == request
    assert from_message(OPEN, OpenRequest, pb.Open(), refuses=True) == OpenRequest()


def test_keyword_arguments_are_the_fields_of_what_they_make() -> None:
    changes, request = get_type_hints(SettingsChange), get_type_hints(OpenRequest)
    settings, options = get_type_hints(SettingOptions), get_type_hints(RequestOptions)
    assert settings.keys() == changes.keys()
    assert {name for name in changes if settings[name] != changes[name]} == {
        "adapter_mix",
        "controls",
        "prompts",
        "timestep_indices",
    }, "any sequence"
    own = options.keys() - settings.keys()
    assert options.keys() == settings.keys() | request.keys() - {"settings", "answer_credit"}
    assert all(request[name] in (options[name], options[name] | None) for name in own)
    assert get_type_hints(OpenOptions).keys() - options.keys() == {"answer_window", "send_quality"}


def test_opened_says_how_a_cache_is_kept_and_how_many_frames_its_first_answer_takes() -> None:
    older = read_opened(pb.Opened())
    assert (older.temporal_cache, older.warm_up_frames) == (None, 1)
    newer = read_opened(
        pb.Opened(
            method=pb.METHOD_LIVE2DIFF,
            temporal_cache=pb.TemporalCache(scene_cut=pb.TemporalCache.REWARM_KEEP),
            warm_up_frames=8,
        )
    )
    assert newer.method is Method.LIVE2DIFF
    assert newer.temporal_cache == CacheSettings(scene_cut=Rewarm.KEEP)
    assert newer.warm_up_frames == 8


def test_enum_values_of_a_newer_server_are_unknown_and_no_error() -> None:
    message = settings_pb2.Settings()
    message.MergeFromString(b"\x28\x63\x30\x63")  # noise_rule 99, guidance 99
    unknown = from_message(SETTINGS, SettingsChange, message, refuses=False)
    assert (unknown.noise_rule, unknown.guidance) == (None, None)
    assert read(message) == Settings()
    newer = pb.Opened()
    newer.MergeFromString(b"\x60\x63")  # method 99
    assert read_opened(newer).method is None


def test_numbers_of_a_newer_server_are_shown_as_they_are_and_no_error() -> None:
    """Its ranges may be wider than those that this client knows."""
    shown = read(settings_pb2.Settings(prompt="a", guidance_scale=99.5, jpeg_quality=101))
    assert (shown.prompt, shown.guidance_scale, shown.jpeg_quality) == ("a", 99.5, 101)
    assert shown.steps == Settings().steps


@pytest.mark.parametrize("change", [EVERY, MIXED], ids=["prompt", "mix"])
async def test_opening_carries_every_setting_and_the_reply_shows_them(change: SettingsChange) -> None:
    async with serving() as (_, client), client.open(**change.named(), method=Method.STREAMV2V) as session:
        assert session.opened.settings == in_force(change)
        assert session.opened.method is Method.STREAMV2V


async def test_a_control_changes_what_it_names_and_its_answer_shows_all() -> None:
    async with serving() as (_, client), client.open(**EVERY.named()) as session:
        await session.control(prompts=MIX, guidance=Guidance.FULL, adapter_mix=ADAPTER_MIX)
        await session.control(delta=0.0, adapters="", blend_frames=0, negative_prompt="")
        await session.finish()
        first, second = [answer async for answer in session]
    assert isinstance(first, ControlApplied)
    assert isinstance(second, ControlApplied)
    assert first.settings == in_force(MIXED)
    assert second.settings == replace(
        in_force(MIXED), delta=0.0, adapter_mix=(), blend_frames=0, negative_prompt=""
    )


async def test_settings_that_were_read_can_be_sent_back() -> None:
    async with serving() as (_, client), client.open(**MIXED.named()) as session:
        await session.control(prompt="other", seed=1)
        await session.control(**session.opened.settings.as_change().named())
        await session.finish()
        *_, last = [answer async for answer in session]
    assert isinstance(last, ControlApplied)
    assert last.rejected_reason is None
    assert last.settings == in_force(MIXED)


async def test_a_prompt_and_a_mix_at_a_time_are_refused() -> None:
    async with serving() as (_, client):
        with pytest.raises(InvalidRequest) as caught:
            async with client.open(prompt="clay", prompts=MIX):
                pass
        assert caught.value.reason is Reason.SETTING_OUT_OF_RANGE
        with pytest.raises(InvalidRequest) as caught:
            async with client.open(prompt="clay", adapters="ink", adapter_mix=ADAPTER_MIX):
                pass
        assert caught.value.reason is Reason.SETTING_OUT_OF_RANGE
        async with client.open(prompt="clay") as session:
            await session.control(prompt="neon", prompts=MIX)
            await session.finish()
            (applied,) = [answer async for answer in session]
    assert isinstance(applied, ControlApplied)
    assert applied.rejected_reason is Reason.SETTING_OUT_OF_RANGE
    assert applied.settings.prompt == "clay"


async def test_a_similarity_filter_is_asked_for_only_if_it_was_given() -> None:
    wanted = SimilarityOptions(threshold=0.5, max_skip_frames=3)
    async with serving() as (server, client):
        async with client.open(similarity_filter=wanted) as session:
            asked = server.sessions[session.opened.session_id].open.similarity_filter
            assert (asked.threshold, asked.max_skip_frames) == (0.5, 3)
        async with client.open(similarity_filter=SimilarityOptions()) as session:
            message = server.sessions[session.opened.session_id].open
            assert message.HasField("similarity_filter")
            assert not message.similarity_filter.HasField("threshold")
        async with client.open() as session:
            assert not server.sessions[session.opened.session_id].open.HasField("similarity_filter")


@pytest.mark.parametrize("first", [EVERY, MIXED], ids=["prompt", "mix"])
@pytest.mark.parametrize("num_lost", [1, 3, 10])
async def test_frames_sent_again_are_received_under_the_settings_they_were_sent_under(
    first: SettingsChange, num_lost: int
) -> None:
    """The server has applied controls when it loses frames from before them; 10 is all of the unanswered."""
    changes = SettingsChange(
        prompt="neon",
        strength=0.2,
        steps=1,
        seed=5,
        noise_rule=NoiseRule.FIXED,
        guidance=Guidance.SELF,
        guidance_scale=4.0,
        delta=2.0,
        negative_prompt="",
        adapters="",
        jpeg_quality=30,
    )
    faults = Faults(window=20, depth=6, cut_after_answers=[1], unreceived_on_cut=num_lost)
    async with serving(faults) as (server, client):
        items = [*map(picture, range(3)), changes, *map(picture, range(3, 5)), SettingsChange(prompts=MIX)]
        items += map(picture, range(5, 7))
        answers = [answer async for answer in client.translate_frames(items, **first.named())]
    assert [a.frame_index for a in answers if isinstance(a, Translated | Dropped)] == list(range(7))
    assert server.log.num_resumes == 1
    assert num_lost < 10 or server.log.received.count(1) == 2
    sent = in_force(first)
    second = changes.apply(sent)
    third = SettingsChange(prompts=MIX).apply(second)
    under = {index: read(message) for index, message in server.log.received_under.items()}
    assert under == {0: sent, 1: sent, 2: sent, 3: second, 4: second, 5: third, 6: third}
    applied = [answer for answer in answers if isinstance(answer, ControlApplied)]
    assert [answer.settings for answer in applied] == [second, third]
