"""Messages of a wall: what is written is read again, and nothing else is taken for a message."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from dataclasses import fields
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import BaseModel
from rearview.client import (
    BankOptions,
    CacheOptions,
    DropPolicy,
    Guidance,
    Method,
    NoiseRule,
    Settings,
    SettingsChange,
    SimilarityOptions,
    WeightedAdapters,
    WeightedControl,
    WeightedPrompt,
)
from rearview.contract.opening import OpenRequest
from rearview.contract.reference import ImageFile
from rearview.errors import RearviewError, Reason
from rearview.studio.protocol import (
    MAX_FRAME_BYTES,
    MAX_TEXT_BYTES,
    MAX_TILES,
    Bye,
    Close,
    Control,
    FrameIn,
    Hello,
    Kill,
    ModelAsked,
    Open,
    PictureOut,
    ProgramAsked,
    Received,
    TurnAsked,
    frame_out,
    picture_out,
    read_frame,
    read_message,
)
from rearview.studio.said import Opened, ProgramSaid, Said, Welcome, text_of
from rearview.studio.spoken import UNSPOKEN, spoken

pytestmark = pytest.mark.unit

TILES = st.integers(0, MAX_TILES - 1)
TEXT = st.text(max_size=20)
NUMBERS = st.floats(allow_nan=False, allow_infinity=False, width=32)


def maybe(values: st.SearchStrategy[Any]) -> st.SearchStrategy[Any]:
    return st.none() | values


PROMPTS = st.lists(st.builds(WeightedPrompt, TEXT, NUMBERS), max_size=3).map(tuple)
CHANGES = st.builds(
    SettingsChange,
    prompt=maybe(TEXT),
    strength=maybe(NUMBERS),
    steps=maybe(st.integers()),
    seed=maybe(st.integers(0, 2**64)),
    noise_rule=maybe(st.sampled_from(NoiseRule)),
    guidance=maybe(st.sampled_from(Guidance)),
    prompts=maybe(PROMPTS),
    adapters=maybe(TEXT),
    adapter_mix=maybe(st.lists(st.builds(WeightedAdapters, TEXT, NUMBERS), max_size=3).map(tuple)),
    controls=maybe(st.lists(st.builds(WeightedControl, TEXT, NUMBERS), max_size=3).map(tuple)),
    reference=maybe(st.builds(ImageFile.of, st.binary(max_size=40))),
    reference_scale=maybe(NUMBERS),
)
SESSIONS = st.builds(
    OpenRequest,
    settings=CHANGES,
    width=st.integers(0, 4096),
    height=st.integers(0, 4096),
    drop_policy=st.sampled_from(DropPolicy),
    frame_budget_s=NUMBERS,
    frame_rate=NUMBERS,
    jpeg_quality=maybe(st.integers(-1, 200)),
    max_steps=st.integers(0, 9),
    method=maybe(st.sampled_from(Method)),
    feature_bank=maybe(st.builds(BankOptions, interval=maybe(st.integers()), fusion_strength=maybe(NUMBERS))),
    similarity_filter=maybe(st.builds(SimilarityOptions, threshold=maybe(NUMBERS))),
    temporal_cache=maybe(st.builds(CacheOptions, instant_start=maybe(st.booleans()))),
)
MESSAGES = st.one_of(
    st.builds(Hello, token=maybe(TEXT), wall=maybe(TEXT)),
    st.builds(Open, tile=TILES, options=SESSIONS),
    st.builds(Control, tile=TILES, id=st.integers(0, 2**53 - 1), settings=CHANGES),
    st.builds(Close, tile=TILES),
    st.builds(Received, answers=st.integers(0, 2**53 - 1)),
    st.builds(ProgramAsked, a=TILES, b=maybe(TILES), mix=st.floats(0.0, 1.0), fade_ms=st.integers(0, 60_000)),
    st.builds(TurnAsked, tile=TILES, name=TEXT, share=st.floats(0.0, 1.0)),
    st.builds(ModelAsked, id=TEXT, action=st.sampled_from(["look", "fetch", "cancel", "use"])),
    st.builds(Kill, span=TEXT),
    st.just(Bye()),
)
EXAMPLE: dict[str, Any] = {
    "type": "open",
    "tile": 0,
    "options": {
        "width": 256,
        "drop_policy": "latest",
        "method": "streamv2v",
        "settings": {"prompts": [{"prompt": "a", "weight": 1}], "guidance": "self", "seed": None},
        "feature_bank": {"policy": "queue", "max_frames": 2},
    },
}


def reason_of(read: Callable[[Any], object], content: object) -> Reason | None:
    """Why it is refused; None: it is read. Anything else that is raised fails the test."""
    try:
        read(content)
    except RearviewError as error:
        return error.reason
    return None


@given(MESSAGES)
def test_a_message_that_is_written_is_read_again(message: BaseModel) -> None:
    assert read_message(text_of(message)) == message  # type: ignore[arg-type]


def test_a_page_that_knows_field_names_alone_opens_a_session() -> None:
    asked = read_message(json.dumps(EXAMPLE))
    assert isinstance(asked, Open)
    assert asked.options.method is Method.STREAMV2V
    expected = SettingsChange(prompts=(WeightedPrompt("a", 1.0),), guidance=Guidance.SELF)
    assert asked.options.settings == expected
    assert asked.options.height == 0


def test_every_setting_and_option_can_be_said() -> None:
    for kind, model in ((SettingsChange, Control), (OpenRequest, Open)):
        for one in fields(kind):
            text = {
                "type": "control" if model is Control else "open",
                "tile": 0,
                ("settings" if model is Control else "options"): {one.name: None},
            }
            if model is Control:
                text["id"] = 1
            if one.name in UNSPOKEN:
                with pytest.raises(RearviewError):
                    read_message(json.dumps(text))
            else:
                read_message(json.dumps(text))


@pytest.mark.parametrize(
    ("text", "where"),
    [
        ("", "message"),
        ("{", "message"),
        ("[]", "message"),
        ("null", "message"),
        ('{"type":"nonsense"}', "message"),
        ('{"type":"open","tile":9,"options":{}}', "open.tile"),
        ('{"type":"open","tile":true,"options":{}}', "open.tile"),
        ('{"type":"open","tile":0,"options":{"colour":1}}', "open.options.colour"),
        ('{"type":"open","tile":0,"options":{"model":"x"}}', "open.options.model"),
        ('{"type":"open","tile":0,"options":{"frame_rate":NaN}}', "open.options.frame_rate"),
        ('{"type":"open","tile":0,"options":{"settings":{"guidance":1}}}', "open.options.settings.guidance"),
        (
            '{"type":"open","tile":0,"options":{"settings":{"guidance":"SELF"}}}',
            "open.options.settings.guidance",
        ),
        ('{"type":"control","tile":0,"id":1,"settings":{"prompts":[{"prompt":"a"}]}}', "weight"),
        ('{"type":"control","tile":0,"id":-1,"settings":{}}', "control.id"),
        ('{"type":"received","answers":1.5}', "received.answers"),
        ('{"type":"program","a":0,"mix":1.01}', "program.mix"),
        ('{"type":"hello","token":"\\ud800"}', "message"),
        ("[" * 30_000, "message"),
    ],
)
def test_what_is_no_message_is_refused_where_it_is_wrong(text: str, where: str) -> None:
    with pytest.raises(RearviewError) as caught:
        read_message(text)
    assert caught.value.reason is Reason.MESSAGE_INVALID
    assert where in caught.value.message.split(":")[0]
    assert "Value error" not in caught.value.message


def test_a_refusal_quotes_nothing_of_the_message() -> None:
    for text in (
        '{"type":"S3CRET"}',
        '{"type":"hello","S3CRET":1}',
        '{"type":"hello","token":["S3CRET"]}',
        "S3CRET",
    ):
        with pytest.raises(RearviewError) as caught:
            read_message(text)
        assert "S3CRET" not in caught.value.message.partition(":")[2]


def test_a_long_message_is_refused_before_it_is_read() -> None:
    with pytest.raises(RearviewError) as caught:
        read_message(" " * (MAX_TEXT_BYTES + 1))
    assert caught.value.reason is Reason.MESSAGE_TOO_LARGE


@given(
    st.text(max_size=200)
    | st.recursive(
        st.none() | st.text(max_size=9) | NUMBERS | st.integers(),
        lambda s: (
            st.lists(s, max_size=3)
            | st.dictionaries(
                st.sampled_from(["type", "tile", "options", "settings", "id"]) | TEXT, s, max_size=4
            )
        ),
    ).map(json.dumps)
)
def test_no_text_does_anything_but_be_read_or_refused(text: str) -> None:
    assert reason_of(read_message, text) in (None, Reason.MESSAGE_INVALID)


@given(st.data())
def test_a_damaged_message_is_read_or_refused(data: st.DataObject) -> None:
    text = data.draw(MESSAGES.map(text_of))  # type: ignore[arg-type]
    at = data.draw(st.integers(0, len(text)))
    damaged = text[:at] + data.draw(st.text(max_size=3)) + text[at + data.draw(st.integers(0, 3)) :]
    # An image inside a message has a reason of its own.
    assert reason_of(read_message, damaged) in (None, Reason.MESSAGE_INVALID, Reason.REFERENCE_INVALID)


FRAMES = st.builds(
    FrameIn,
    st.integers(0, 2**32 - 1),
    st.floats(allow_nan=False, allow_infinity=False),
    st.binary(min_size=1, max_size=64),
)


@given(FRAMES)
def test_a_frame_comes_as_it_was_sent(frame: FrameIn) -> None:
    assert read_frame(frame_out(frame)) == frame


@given(st.binary(max_size=40))
def test_no_bytes_do_anything_but_be_read_or_refused(data: bytes) -> None:
    reason = reason_of(read_frame, data)
    assert reason is Reason.MESSAGE_INVALID or frame_out(read_frame(data)) == data


def test_a_frame_over_the_limit_is_refused() -> None:
    assert read_frame(frame_out(FrameIn(0, 0.0, bytes(MAX_FRAME_BYTES)))).frame == 0
    with pytest.raises(RearviewError) as caught:
        read_frame(frame_out(FrameIn(0, 0.0, bytes(MAX_FRAME_BYTES + 1))))
    assert caught.value.reason is Reason.MESSAGE_TOO_LARGE


@given(TILES, FRAMES, NUMBERS, NUMBERS, st.binary(max_size=64))
def test_a_picture_is_read_as_it_was_written(
    tile: int, frame: FrameIn, server: float, service: float, picture: bytes
) -> None:
    read = PictureOut.read(picture_out(tile, frame, server, service, picture))
    assert read == PictureOut(tile, frame.frame, frame.captured_ms, server, service, picture)
    assert math.isfinite(read.captured_ms)


def test_what_the_gateway_says_is_plain_json_with_its_type_first() -> None:
    opened = Opened(
        tile=1,
        session_id="s",
        width=64,
        height=64,
        settings=Settings("a"),
        options={},
        method="per_frame",
        advice="",
        unknown_words=("a",),
        warm_up_frames=1,
        continuity="exact",
        frame=3,
        model="pocket",
    )
    text = text_of(
        Welcome(
            wall="w",
            viewer="v",
            resumed=False,
            page=1,
            heard=0,
            credit=4,
            tiles=[opened],
            program=ProgramSaid(a=None),
        )
    )
    said = json.loads(text)
    assert text.startswith('{"type": "welcome"')
    assert said["tiles"][0]["settings"]["noise_rule"] == "fixed"
    assert UNSPOKEN.isdisjoint(said["tiles"][0]["settings"])
    assert said["program"]["type"] == "program"


def test_every_word_of_the_gateway_has_a_type_of_its_own() -> None:
    types = [kind.type for kind in Said.__subclasses__()]
    assert len(types) == len(set(types)) > 10


def test_a_reference_that_is_no_base64_is_refused_by_its_own_reason() -> None:
    message = {"type": "control", "tile": 0, "id": 1, "settings": {"reference": {"base64": "no!"}}}
    assert reason_of(read_message, json.dumps(message)) is Reason.REFERENCE_INVALID


def test_an_opening_is_said_as_it_was_asked_and_may_be_said_again() -> None:
    asked = {
        "width": 64,
        "method": "streamv2v",
        "feature_bank": {"policy": "queue", "max_frames": 2},
        "similarity_filter": {},
        "drop_policy": "lossless",
        "settings": {"prompt": "a"},
    }
    said = read_message(json.dumps({"type": "open", "tile": 0, "options": asked}))
    assert isinstance(said, Open)
    options = spoken(said.options)
    assert asked.items() <= {**options, "settings": asked["settings"]}.items()
    assert "temporal_cache" not in options
    again = {"type": "open", "tile": 0, "options": options}
    assert read_message(json.dumps(again)) == said
