"""What a tenant may, and which settings make sense."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
from rearview.config import BankConfig, CacheConfig, LimitsConfig, ModelConfig, TenantConfig
from rearview.contract.card import ModelCard
from rearview.contract.lease import Quota
from rearview.contract.memories import BankPolicy, BankSettings, CacheSettings
from rearview.contract.session import SessionSpec
from rearview.contract.size import Size
from rearview.control.admission import Admission, Served, check_settings, quota_of
from rearview.control.methods import Offer
from rearview.errors import InvalidRequest, Reason
from rearview.model_config import ControlConfig

pytestmark = pytest.mark.unit

NAN, INF = math.nan, math.inf


def tenant(name: str = "alpha", **changes: object) -> TenantConfig:
    return TenantConfig.model_validate({"name": name, "token_sha256": "0" * 64, "max_streams": 2, **changes})


def admission(**limits: int) -> Admission:
    offer = Offer(None, None, has_motion=False)
    return Admission(Served(ModelConfig(checkpoint="null"), LimitsConfig(**limits), ModelCard(), offer))


def test_a_tenants_quota_is_what_its_entry_says() -> None:
    limited = tenant(max_frames_per_s=60.0, max_pixels=64 * 64)
    assert quota_of(limited) == Quota(2, 60.0, math.inf)
    assert quota_of(tenant(max_pixels_per_s=1e6)).pixels_per_s == 1e6


def test_one_seconds_worth_of_frames_may_come_at_once() -> None:
    subject = admission()
    limited = tenant(max_frames_per_s=30.0)
    assert [not subject.take_frame(limited, 5.0) for _ in range(31)] == [True] * 30 + [False]


def test_the_rate_holds_over_time() -> None:
    subject = admission()
    limited = tenant(max_frames_per_s=30.0)
    taken = sum(not subject.take_frame(limited, step / 100) for step in range(1_000))
    assert taken == pytest.approx(30 * 10 + 30, abs=1)


def test_a_frame_at_the_rate_is_never_refused() -> None:
    subject = admission()
    limited = tenant(max_frames_per_s=30.0)
    assert not any(subject.take_frame(limited, step / 30) for step in range(3_000))


def test_a_rate_below_one_frame_per_second_still_passes_frames() -> None:
    subject = admission()
    limited = tenant(max_frames_per_s=0.5)
    waits_s = [subject.take_frame(limited, now) for now in (0.0, 1.0, 2.0, 3.0, 4.0)]
    assert waits_s == [0.0, 1.0, 0.0, 1.0, 0.0]


def test_one_tenants_rate_does_not_count_for_another() -> None:
    subject = admission()
    assert not subject.take_frame(tenant("alpha", max_frames_per_s=1.0), 0.0)
    assert not subject.take_frame(tenant("beta", max_frames_per_s=1.0), 0.0)


def test_controls_beyond_the_rate_are_counted_and_make_the_next_wait_longer() -> None:
    subject = admission()
    limited = tenant(max_frames_per_s=5.0)
    waits_s = [subject.count_control(limited, 5.0) for _ in range(12)]
    assert waits_s == pytest.approx([0.0] * 9 + [0.1, 0.2, 0.3])
    assert subject.count_control(limited, 5.2) == pytest.approx(0.2)
    assert not subject.count_control(tenant("beta", max_frames_per_s=5.0), 5.2)


def test_large_messages_that_come_at_once_are_read_one_by_one_at_the_tenants_rate() -> None:
    subject, limited = admission(max_image_bytes=1 << 20), tenant(max_frames_per_s=20.0)
    now, read_s = 5.0, []
    for _ in range(22):
        read_s.append(now)
        now += subject.count_shares(limited, subject.message_share(1 << 20), now)
    assert read_s[:2] == [5.0, 5.0]  # One may have been held up.
    assert read_s[2:] == pytest.approx([5.0 + n / 20 for n in range(1, 21)])


def test_messages_at_the_tenants_rate_never_wait_whatever_their_size() -> None:
    subject, limited = admission(max_image_bytes=1 << 20), tenant(max_frames_per_s=20.0)
    share = subject.message_share(3 << 20)
    assert share == 1.0  # However large it is.
    assert max(subject.count_shares(limited, share, step / 20) for step in range(1_000)) < 1e-9


def test_pictures_of_controls_count_as_the_frame_does_up_to_one_for_each() -> None:
    subject = admission(max_image_bytes=1 << 20)
    controls = {name: ControlConfig(path="none", picture="sent") for name in ("pose", "lines")}
    model = subject.served.model.model_copy(update={"controls": controls})
    subject = Admission(replace(subject.served, model=model))
    shares = [subject.message_share(size << 20) for size in (1, 2, 3, 9)]
    assert shares == pytest.approx([1.0, 2.0, 3.0, 3.0])


def test_small_messages_may_be_many_at_once_and_a_tenants_streams_share_what_is_left() -> None:
    subject, limited = admission(max_image_bytes=1 << 20), tenant(max_frames_per_s=20.0)
    waits_s = [subject.count_shares(limited, subject.message_share(1 << 16), 5.0) for _ in range(18)]
    assert waits_s == pytest.approx([0.0] * 16 + [1 / 320, 2 / 320])
    assert not subject.count_shares(tenant("beta", max_frames_per_s=20.0), 1.0, 5.0)


@pytest.mark.parametrize(
    ("width", "height"), [(0, 64), (64, 0), (56, 64), (64, 68), (257, 256), (1024, 1032), (1 << 31, 64)]
)
def test_unserved_sizes_are_refused(width: int, height: int) -> None:
    with pytest.raises(InvalidRequest) as caught:
        admission().check_resolution(tenant(), width, height)
    assert caught.value.reason is Reason.RESOLUTION_UNSUPPORTED


@pytest.mark.parametrize(("width", "height"), [(64, 64), (256, 256), (1024, 1024), (4096, 256)])
def test_served_sizes_pass(width: int, height: int) -> None:
    admission().check_resolution(tenant(), width, height)


def test_the_smaller_of_tenant_and_service_limits_pixels() -> None:
    for service, own in ((128 * 128, 256 * 256), (256 * 256, 128 * 128)):
        subject = admission(max_pixels=service)
        subject.check_resolution(tenant(max_pixels=own), 128, 128)
        with pytest.raises(InvalidRequest):
            subject.check_resolution(tenant(max_pixels=own), 136, 128)


@pytest.mark.parametrize("prompt", ["", " ", "\n\t ", "\u3000\u2028"])
def test_blank_prompts_are_refused(prompt: str) -> None:
    with pytest.raises(InvalidRequest) as caught:
        admission().check_prompt(prompt)
    assert caught.value.reason is Reason.PROMPT_EMPTY


@pytest.mark.parametrize("prompt", ["x" * 65, "é" * 33, "x" * 100_000, " " * 65])
def test_prompts_beyond_the_byte_limit_are_refused_without_being_quoted(prompt: str) -> None:
    with pytest.raises(InvalidRequest) as caught:
        admission(max_prompt_bytes=64).check_prompt(prompt)
    assert caught.value.reason is Reason.PROMPT_TOO_LONG
    assert prompt not in caught.value.message


@pytest.mark.parametrize("prompt", ["x" * 64, "é" * 32, " a ", "\x00ok"])
def test_prompts_within_the_byte_limit_pass(prompt: str) -> None:
    admission(max_prompt_bytes=64).check_prompt(prompt)


BAD_SETTINGS = [
    *(("strength", value) for value in (NAN, INF, -INF, 0.0, -0.1, 1.0001)),
    *(("steps", value) for value in (0, 5, -1, 2**32 - 1)),
    *(("seed", value) for value in (-1, 1 << 64)),
    *(("session_max_steps", value) for value in (0, 5)),
    *(("frame_rate", value) for value in (NAN, INF, -INF, 0.0, -30.0, 240.5)),
    *(("frame_budget_s", value) for value in (NAN, INF, 0.0, -0.5, 61.0)),
]


@pytest.mark.parametrize(("name", "value"), BAD_SETTINGS)
def test_senseless_settings_are_refused_by_field(name: str, value: float) -> None:
    with pytest.raises(InvalidRequest) as caught:
        check_settings(max_steps=4, **{name: value})  # type: ignore[arg-type]
    assert caught.value.reason is Reason.SETTING_OUT_OF_RANGE
    fields = {"session_max_steps": "max_steps", "frame_budget_s": "frame_budget"}
    assert caught.value.metadata == {"field": fields.get(name, name)}


@pytest.mark.parametrize("top", [False, True])
def test_settings_at_both_ends_of_their_range_pass(top: bool) -> None:
    check_settings(
        max_steps=4,
        strength=1.0 if top else 1e-6,
        steps=4 if top else 1,
        seed=(1 << 64) - 1 if top else 0,
        session_max_steps=4 if top else 1,
        frame_rate=240.0 if top else 0.1,
        frame_budget_s=60.0 if top else 0.001,
    )


def test_absent_settings_are_not_looked_at() -> None:
    check_settings(max_steps=1)


@pytest.mark.parametrize(
    ("kind", "size", "fits"),
    [
        ("per-frame", Size(1024, 1024), True),
        ("per-frame", Size(1032, 1024), False),
        ("per-frame", Size(260, 192), False),
        ("bank", Size(192, 256), True),
        ("bank", Size(184, 256), False),
        ("bank", Size(248, 184), True),
        ("bank", Size(512, 192), False),
        ("one frame", Size(384, 256), True),
        ("one frame", Size(384, 320), False),
        ("cache", Size(192, 256), True),
        ("cache", Size(184, 256), False),
        ("cache", Size(384, 256), False),
    ],
)
def test_a_session_takes_the_sizes_for_which_its_memory_has_room(kind: str, size: Size, fits: bool) -> None:
    """Of 256x192, with a bank of two frames: larger on one side only where no layer rounds."""
    two = {"policy": "queue", "max_frames": 2}
    offer = Offer(BankConfig.model_validate(two), CacheConfig(), has_motion=True)
    model = ModelConfig(checkpoint="null", width=256, height=192)
    served = Served(model, LimitsConfig(), ModelCard(), offer, motion_multiple=64, whole_multiple=64)
    bank = BankSettings(policy=BankPolicy.QUEUE, max_frames=1 if kind == "one frame" else 2)
    spec = SessionSpec(
        "s",
        64,
        64,
        2,
        bank=bank if kind in ("bank", "one frame") else None,
        cache=CacheSettings() if kind == "cache" else None,
    )
    if fits:
        return Admission(served).check_resize(tenant(), spec, size)
    with pytest.raises(InvalidRequest) as refused:
        Admission(served).check_resize(tenant(), spec, size)
    assert refused.value.reason is Reason.RESOLUTION_UNSUPPORTED
    return None
