"""Guidance of each kind: invariants C, and B3, B8, G1, G6 and G11, of docs/methods.md, 4."""

from __future__ import annotations

from dataclasses import replace
from itertools import pairwise
from typing import Any

import pytest
import torch
from diffusers import AutoencoderTiny, LCMScheduler
from diffusers.pipelines.stable_diffusion import pipeline_stable_diffusion_img2img as pipeline_module
from diffusers.schedulers import scheduling_lcm as scheduler_module
from rearview.contract.memories import BankPolicy, BankSettings
from rearview.contract.settings import Guidance, NoiseRule, Settings
from rearview.engine.engine import Order
from rearview.engine.memory.memoryless import Memoryless
from rearview.engine.memory.protocol import Views
from rearview.engine.networks.call import EagerCall
from rearview.engine.networks.denoise import Denoiser
from rearview.engine.networks.guidance import negative_rows
from rearview.engine.networks.sampling import Schedule, noise
from rearview.engine.reference.frame import denoise_latent
from rearview.errors import InvalidRequest
from rearview.transport.wire import decode_settings, encode_settings
from support.frames import entering, stacked
from support.memories import exported
from support.tiny import LATENT_CHANNELS, SCHEDULER
from support.tiny_bank import (
    Stream,
    banked,
    by_reference,
    gap,
    make_row,
    play,
    tiny_bank,
    tiny_denoiser,
    tiny_engine,
    video,
)
from support.tiny_pipeline import in_pieces
from support.toy import drain

pytestmark = pytest.mark.unit

EXACT = 1e-9
VISIBLE = 1e-3
KINDS = list(Guidance)
ACTING = [Guidance.SELF, Guidance.INITIALIZE, Guidance.FULL]
ANCHORED = [Guidance.SELF, Guidance.INITIALIZE]


def guided(kind: Guidance, steps: int = 2, **fields: Any) -> Settings:
    values = {"guidance_scale": 1.4, "delta": 0.5, "negative_prompt": "grey", "strength": 0.6, **fields}
    return Settings(**{"prompt": "a", "steps": steps, "guidance": kind, **values})


def mixed_sessions(count: int, bank: bool) -> list[Stream]:
    """Every kind of guidance, at mixed steps, strengths, scales and noise rules."""
    banks = [BankSettings(interval=2, fusion_threshold=0.9), None, BankSettings(policy=BankPolicy.QUEUE)]
    return [
        Stream(
            replace(
                banked(f"s{i}", banks[i % 3] if bank else None),
                settings=guided(
                    KINDS[i % 4],
                    1 + i % 3,
                    seed=i,
                    strength=0.9 - 0.1 * (i % 5),
                    guidance_scale=1.2 + 0.2 * (i % 3),
                    delta=0.5 + 0.25 * (i % 3),
                    noise_rule=list(NoiseRule)[i % 2],
                ),
            ),
            video(4, seed=i),
        )
        for i in range(count)
    ]


def oracle_denoiser(clean: torch.Tensor, calls: list[int]) -> Denoiser:
    """A UNet that tells the noise exactly, whatever the prompt; `calls` gets its rows."""
    schedule, conditioning = Schedule(SCHEDULER), tiny_denoiser().conditioning

    def oracle(x: torch.Tensor, timesteps: torch.Tensor, **_: object) -> tuple[torch.Tensor]:
        calls.append(len(x))
        steps = [schedule.coefficients(int(t)) for t in timesteps]
        told = [(x[i] - step.alpha * clean) / step.beta for i, step in enumerate(steps)]
        return (torch.stack(told),)

    return Denoiser(oracle, schedule, conditioning, torch.float64)


def run_steps(denoiser: Denoiser, settings: Settings, latent: torch.Tensor, ordinal: int = 0) -> list[Any]:
    """What each step hands on, in order."""
    spec = replace(banked("s", None), settings=settings)
    payloads, payload = [], latent
    with torch.inference_mode():
        for step in range(settings.steps):
            row = make_row(spec, payload, ordinal, step)
            (planes,), _ = denoiser([row.planes], [row], Views())
            payloads.append(stacked(planes))
            payload = planes
    return payloads


def spied(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Rows of every UNet call of the tiny denoiser."""
    calls: list[int] = []
    denoiser = tiny_denoiser()
    unet = denoiser.unet

    def spy(x: torch.Tensor, *arguments: object, **options: object) -> Any:
        calls.append(len(x))
        return unet(x, *arguments, **options)

    monkeypatch.setattr(denoiser, "call", EagerCall(spy))
    return calls


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("steps", [1, 2, 3])
def test_c1_at_scale_one_every_kind_is_no_guidance(kind: Guidance, steps: int) -> None:
    latent = video(1)[0]
    settings = guided(kind, steps, guidance_scale=1.0)
    plain = run_steps(tiny_denoiser(), guided(Guidance.NONE, steps), latent)[-1]
    assert torch.equal(run_steps(tiny_denoiser(), settings, latent)[-1], plain)
    assert negative_rows([make_row(replace(banked("s", None), settings=settings), latent)]) == []


@pytest.mark.parametrize("steps", [1, 2, 3])
def test_c2_a_negative_prompt_like_the_prompt_is_no_guidance(steps: int) -> None:
    latent = video(1)[0]
    settings = guided(Guidance.FULL, steps, negative_prompt="a", guidance_scale=5.0)
    plain = run_steps(tiny_denoiser(), guided(Guidance.NONE, steps), latent)[-1]
    assert gap([run_steps(tiny_denoiser(), settings, latent)[-1]], [plain]) <= EXACT


@pytest.mark.parametrize("kind", ACTING)
def test_every_kind_of_guidance_changes_the_picture_in_its_own_way(kind: Guidance) -> None:
    latent = video(1)[0]
    ours = run_steps(tiny_denoiser(), guided(kind, 2), latent)[-1]
    for other in KINDS:
        theirs = run_steps(tiny_denoiser(), guided(other, 2), latent)[-1]
        assert (gap([ours], [theirs]) > VISIBLE) is (other is not kind), other


def by_recursion(settings: Settings, z: torch.Tensor) -> tuple[list[torch.Tensor], list[torch.Tensor]]:
    """x and s of every step by the update of methods 1.5, by the UNet's words: neither anchors nor clean
    latents of a negative, but s <- eps' + alpha'/beta' (c_out (beta s - beta e)/alpha + c_skip beta s).
    """
    denoiser = tiny_denoiser()
    embed = denoiser.conditioning.embed
    steps = denoiser.schedule.steps(settings)
    draws = [noise(settings, 0, i, tuple(z.shape)).to(z) for i in range(len(steps))]

    def predict(x: torch.Tensor, timestep: int, prompt: str) -> torch.Tensor:
        time = torch.tensor([timestep])
        told = denoiser.unet(x[None], time, encoder_hidden_states=embed(prompt), return_dict=False)
        return told[0][0]  # type: ignore[no-any-return]

    x, s = steps[0].alpha * z + steps[0].beta * draws[0], draws[0]
    xs, residuals = [x], [s]
    for i, step in enumerate(steps):
        if settings.guidance is Guidance.INITIALIZE and i == 0:
            s = residuals[0] = predict(x, step.timestep, settings.negative_prompt)
        u = settings.delta * s
        e = u + settings.guidance_scale * (predict(x, step.timestep, settings.prompt) - u)
        clean = step.c_out * (x - step.beta * e) / step.alpha + step.c_skip * x
        change = step.c_out * (step.beta * s - step.beta * e) / step.alpha + step.c_skip * step.beta * s
        if i + 1 == len(steps):
            return [*xs, clean], residuals
        to = steps[i + 1]
        x, s = to.alpha * clean + to.beta * draws[i + 1], draws[i + 1] + to.alpha / to.beta * change
        xs.append(x)
        residuals.append(s)
    raise AssertionError("no steps")


@pytest.mark.parametrize("kind", ANCHORED)
@pytest.mark.parametrize("strength", [0.4, 0.6, 0.9])
def test_c3_the_virtual_residual_noise_is_that_of_the_recursion(kind: Guidance, strength: float) -> None:
    """x = alpha z + beta s in every step; the two ways to s differ by c_skip, below 1e-6."""
    z = video(1)[0]
    settings = guided(kind, 3, strength=strength)
    with torch.inference_mode():
        xs, residuals = by_recursion(settings, z)
    payloads = run_steps(tiny_denoiser(), settings, z)
    assert [len(payload) for payload in payloads] == [2, 2, LATENT_CHANNELS]
    for i, step in enumerate(tiny_denoiser().schedule.steps(settings)):
        if i > 0:
            x, anchor = payloads[i - 1]
            assert gap([x], [xs[i]]) <= 2e-5
            assert gap([(x - step.alpha * anchor) / step.beta], [residuals[i]]) <= 2e-5
            assert torch.equal(anchor, z) is (kind is Guidance.SELF)
    assert gap([payloads[-1]], [xs[-1]]) <= 2e-5


@pytest.mark.parametrize("kind", ANCHORED)
def test_c4_with_one_step_nothing_is_carried_from_frame_to_frame(kind: Guidance) -> None:
    """A hundred frames of a still picture: the residual noise is that of the frame, so nothing grows."""
    settings = guided(kind, 1, guidance_scale=1.4, delta=0.5)
    latent = video(1)[0]
    stream = Stream(replace(banked("s", None), settings=settings), [latent] * 100)
    pictures = play(tiny_engine(Memoryless(1)), [stream])["s"]
    assert all(torch.equal(picture, pictures[0]) for picture in pictures)  # type: ignore[arg-type]
    assert gap(pictures[:1], by_reference(stream)[:1]) <= EXACT


def test_c5_with_delta_one_initialize_begins_as_full_and_then_differs() -> None:
    latent = video(1)[0]
    full = run_steps(tiny_denoiser(), guided(Guidance.FULL, 3, delta=1.0), latent)
    initialize = run_steps(tiny_denoiser(), guided(Guidance.INITIALIZE, 3, delta=1.0), latent)
    assert gap([full[0]], [initialize[0][0]]) <= EXACT
    assert gap([full[1]], [initialize[1][0]]) > VISIBLE
    assert gap([full[2]], [initialize[2]]) > VISIBLE


@pytest.mark.parametrize("kind", KINDS)
def test_c6_and_b3_a_change_of_prompt_keeps_the_unet_rows_of_a_frame(
    kind: Guidance, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = guided(kind, 3)
    spec = replace(banked("s", None), settings=settings)
    stream = Stream(spec, video(3), {1: replace(settings, prompt="b"), 2: replace(settings, prompt="c")})
    calls = spied(monkeypatch)
    pictures = play(tiny_engine(Memoryless(1), max_batch=1), [stream])["s"]
    per_frame = {Guidance.NONE: 3, Guidance.SELF: 3, Guidance.INITIALIZE: 4, Guidance.FULL: 6}[kind]
    assert sum(calls) == 3 * per_frame
    assert len(calls) == 9, "negative rows took a forward of their own"
    assert gap(pictures, by_reference(stream)) <= EXACT


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("steps", [1, 2, 3])
def test_b8_a_perfect_denoiser_returns_the_input_at_delta_one(kind: Guidance, steps: int) -> None:
    latent, calls = video(1)[0], []
    settings = guided(kind, steps, delta=1.0, guidance_scale=3.0)
    picture = run_steps(oracle_denoiser(latent, calls), settings, latent)[-1]
    assert gap([picture], [latent]) <= 2e-5  # c_out differs from 1 by so much.
    assert len(calls) == steps


@pytest.mark.parametrize("delta", [0.0, 0.5, 1.0, 1.5, 3.5])
def test_delta_scales_the_noise_that_is_removed_as_the_formula_says(delta: float) -> None:
    """With p = s the noise removed is multiplied by g - (g - 1) delta: at delta = g/(g - 1) by nothing."""
    latent, scale = video(1)[0], 1.4
    settings = guided(Guidance.SELF, 1, delta=delta, guidance_scale=scale)
    denoiser = oracle_denoiser(latent, [])
    picture = run_steps(denoiser, settings, latent)[-1]
    (step,) = denoiser.schedule.steps(settings)
    epsilon = noise(settings, 0, 0, tuple(latent.shape)).to(latent)
    removed = scale - (scale - 1.0) * delta
    expected = latent + (1.0 - removed) * step.beta / step.alpha * epsilon
    assert gap([picture], [expected]) <= 2e-5


@pytest.mark.parametrize("bank", [False, True])
@pytest.mark.parametrize("order", Order)
def test_g1_sessions_of_every_guidance_are_in_one_batch_as_alone(bank: bool, order: Order) -> None:
    streams = mixed_sessions(12, bank)
    memory = tiny_bank(12) if bank else Memoryless(12)
    together = play(tiny_engine(memory, order=order), streams, seed=3)
    assert {
        s.spec.session_id: gap(together[s.spec.session_id], by_reference(s))
        for s in streams
        if gap(together[s.spec.session_id], by_reference(s)) > EXACT
    } == {}


def test_g11_mixed_steps_and_kinds_in_one_forward_equal_forwards_apart(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    streams = mixed_sessions(8, bank=False)
    calls = spied(monkeypatch)
    together = play(tiny_engine(Memoryless(8), order=Order.STREAM_BATCH), streams, seed=1)
    batched = max(calls)
    calls.clear()
    apart = play(tiny_engine(Memoryless(8), max_batch=1), streams, seed=2)
    assert batched >= 6, "nothing was batched"
    assert max(calls) <= 2
    for stream in streams:
        assert gap(together[stream.spec.session_id], apart[stream.spec.session_id]) <= EXACT


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("cut", [1, 2])
def test_the_residual_noise_crosses_the_cuts_of_a_pipeline(kind: Guidance, cut: int) -> None:
    settings = guided(kind, 3)
    bank = BankSettings(interval=2, fusion_threshold=0.9)
    stream = Stream(
        replace(banked("s", bank), settings=settings),
        video(4),
        {2: replace(settings, guidance_scale=1.8, delta=0.7, negative_prompt="b")},
    )
    assert gap(in_pieces(stream, [range(cut), range(cut, 3)]), by_reference(stream)) <= EXACT


def test_negative_rows_neither_read_nor_write_the_bank() -> None:
    """A negative prediction beside a full bank is the plain one, and the bank holds what it would without."""
    bank = BankSettings(interval=1, fusion_threshold=-1.0, fusion_strength=1.0)
    full, none = (replace(banked("s", bank), settings=guided(k, 1)) for k in (Guidance.FULL, Guidance.NONE))
    exports = []
    for spec in (full, none):
        memory = tiny_bank(1)
        engine = tiny_engine(memory)
        engine.open(spec)
        for n, latent in enumerate(video(3)):
            engine.admit(entering("s", n, latent), 0.0)
            drain(engine)
        exports.append(exported(memory, "s").layers)
    assert exports[0]
    for key, tensors in exports[0].items():
        assert gap(tensors, exports[1][key]) <= EXACT


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("guidance_scale", 0.9),
        ("guidance_scale", float("nan")),
        ("guidance_scale", 21.0),
        ("delta", -0.1),
        ("delta", float("inf")),
    ],
)
def test_numbers_out_of_range_are_refused_by_name(field: str, value: float) -> None:
    with pytest.raises(InvalidRequest) as raised:
        Settings(**{field: value})
    assert raised.value.metadata == {"field": field}


@pytest.mark.parametrize("prediction_type", ["epsilon", "v_prediction", "sample"])
@pytest.mark.parametrize("kind", ACTING)
def test_every_prediction_type_is_guided_as_the_reference_says(
    kind: Guidance, prediction_type: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    denoiser = tiny_denoiser()
    monkeypatch.setattr(denoiser, "schedule", Schedule({**SCHEDULER, "prediction_type": prediction_type}))
    latent, settings = video(1)[0], guided(kind, 3)
    picture = run_steps(denoiser, settings, latent, ordinal=2)[-1]
    with torch.inference_mode():
        expected = denoise_latent(denoiser, latent[None], settings, 2, torch.float64)[0]
    assert gap([picture], [expected]) <= EXACT


class Pipeline(pipeline_module.StableDiffusionImg2ImgPipeline):  # type: ignore[misc]
    """diffusers' own, given a latent instead of an image to encode."""

    encoded: torch.Tensor

    def prepare_latents(
        self, image: object, timestep: torch.Tensor, *_: object, **__: object
    ) -> torch.Tensor:
        epsilon = scheduler_module.randn_tensor()
        return self.scheduler.add_noise(self.encoded, epsilon, timestep)  # type: ignore[no-any-return]


@pytest.mark.parametrize("steps", [1, 2, 3])
def test_full_guidance_is_the_one_of_diffusers(steps: int, monkeypatch: pytest.MonkeyPatch) -> None:
    latent, settings = video(1)[0], guided(Guidance.FULL, steps, guidance_scale=2.5)
    handed = (noise(settings, 0, i, tuple(latent.shape))[None].double() for i in range(steps))
    monkeypatch.setattr(scheduler_module, "randn_tensor", lambda *_, **__: next(handed))
    theirs = by_diffusers(tiny_denoiser(), settings, latent)
    ours = run_steps(tiny_denoiser(), settings, latent)[-1]
    assert next(handed, None) is None
    assert gap([ours], [theirs]) <= 1e-5  # Their coefficients are in float32.
    plain = run_steps(tiny_denoiser(), replace(settings, guidance=Guidance.NONE), latent)[-1]
    assert gap([ours], [plain]) > VISIBLE


def by_diffusers(denoiser: Denoiser, settings: Settings, latent: torch.Tensor) -> torch.Tensor:
    conditioning = denoiser.conditioning
    pipeline = Pipeline(
        vae=AutoencoderTiny(),
        text_encoder=conditioning.text_encoder,
        tokenizer=conditioning._tokenizer,
        unet=denoiser.unet,
        scheduler=LCMScheduler.from_config(SCHEDULER),
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    )
    pipeline.set_progress_bar_config(disable=True)
    pipeline.encoded = latent[None]
    found = pipeline(
        prompt_embeds=conditioning.embed(settings.prompt),
        negative_prompt_embeds=conditioning.embed(settings.negative_prompt),
        image=torch.zeros(1, 3, 64, 64),
        strength=1.0,
        timesteps=[step.timestep for step in denoiser.schedule.steps(settings)],
        guidance_scale=settings.guidance_scale,
        output_type="latent",
    )
    return found.images[0]  # type: ignore[no-any-return]


def test_settings_of_guidance_travel_on_the_wire() -> None:
    for kind in KINDS:
        settings = guided(kind, 3, guidance_scale=1.7)
        assert decode_settings(encode_settings(settings)) == settings


def test_the_residual_noise_of_a_frame_does_not_outlive_it() -> None:
    """What a frame hands on is its own: two frames in flight at once keep theirs apart."""
    settings = guided(Guidance.SELF, 3, noise_rule=NoiseRule.FRESH)
    stream = Stream(replace(banked("s", None), settings=settings), video(5))
    pictures = play(tiny_engine(Memoryless(1), order=Order.STREAM_BATCH), [stream], seed=4)["s"]
    assert gap(pictures, by_reference(stream)) <= EXACT
    assert all(gap([a], [b]) > VISIBLE for a, b in pairwise(pictures))
