"""Samplers in the engine: other steps, rules and scales in one forward, whole and in pieces."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from diffusers import EulerAncestralDiscreteScheduler, EulerDiscreteScheduler
from rearview.contract.memories import BankSettings
from rearview.contract.sampler import Sampler, sampler_of
from rearview.contract.settings import Guidance, NoiseRule, Settings, SettingsChange, WeightedPrompt
from rearview.contract.timesteps import LCM_GRID
from rearview.engine.engine import Order
from rearview.engine.memory.protocol import Views
from rearview.engine.networks.model import DiffusionModel, Forward
from rearview.engine.networks.sampling import Schedule, noise
from rearview.engine.networks.unet import StreamingUNet
from rearview.engine.rows import Row
from rearview.engine.weights.checkpoint import load_denoiser
from rearview.errors import ConfigError, InvalidRequest
from support import tiny_bank, tiny_chain
from support.tiny import SCHEDULER, random_frames, session, whole_chain
from support.tiny_bank import Stream, banked, play, video
from support.tiny_chain import LATENT_SPAN, MAX_STEPS, chain_engine, reference_latents, reference_pictures
from support.tiny_pipeline import in_pieces
from support.tiny_turbo import ANCESTRAL_SCHEDULER, TURBO_SCHEDULER, write_tiny_lcm
from torch import Tensor

pytestmark = pytest.mark.unit

CPU = torch.device("cpu")
CLOSE = 1e-5
LISTS = [(25,), (25, 34, 43), (32, 45), (22, 32, 45), (0, 12, 25, 37), (49, 49)]


@pytest.fixture
def euler(monkeypatch: pytest.MonkeyPatch) -> Schedule:
    """The tiny networks under SD-Turbo's schedule."""
    schedule = Schedule(TURBO_SCHEDULER)
    monkeypatch.setattr(tiny_chain.tiny_networks()[1], "schedule", schedule)
    return schedule


@pytest.fixture
def euler_ancestral(monkeypatch: pytest.MonkeyPatch) -> Schedule:
    """The tiny networks under SDXL-Turbo's schedule."""
    schedule = Schedule(ANCESTRAL_SCHEDULER)
    monkeypatch.setattr(tiny_chain.tiny_networks()[1], "schedule", schedule)
    return schedule


def clips(frames: int = 3) -> list[Stream]:
    """Sessions with a list each, and every rule of noise; every second one changes on the way."""
    made = []
    for i, indices in enumerate(LISTS):
        rule = list(NoiseRule)[i % 3]
        settings = Settings("p", steps=len(indices), seed=i, noise_rule=rule, timestep_indices=indices)
        spec = session(f"{i:032x}", settings, max_steps=MAX_STEPS)
        changes = {1: Settings("q", 0.6, 1 + i % MAX_STEPS, noise_rule=rule)} if i % 2 else {}
        made.append(Stream(spec, random_frames(frames, seed=i), changes))
    return made


@pytest.mark.parametrize("order", Order)
@pytest.mark.parametrize("sampler", Sampler)
def test_sessions_with_lists_and_rules_of_their_own_share_forwards(
    request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch, sampler: Sampler, order: Order
) -> None:
    if sampler is not Sampler.LCM:
        request.getfixturevalue(sampler.value)
    counts: list[int] = []
    forward = DiffusionModel.forward

    def counted(model: DiffusionModel, rows: Sequence[Row], views: Views) -> Forward:
        counts.append(len(rows))
        return forward(model, rows, views)

    monkeypatch.setattr(DiffusionModel, "forward", counted)
    together = play(chain_engine(LATENT_SPAN, order=order), clips())
    assert max(counts) >= len(LISTS) - 1, "sessions with other timesteps did not share a forward"
    for clip in clips():
        found = together[clip.spec.session_id]
        for latent, wanted in zip(found, reference_latents(clip), strict=True):
            assert latent is not None
            torch.testing.assert_close(latent, wanted, rtol=CLOSE, atol=CLOSE)


def test_alone_the_engine_gives_the_pictures_of_the_reference(euler: Schedule) -> None:
    for clip in clips(2):
        found = play(chain_engine(whole_chain(MAX_STEPS), max_batch=1), [clip])[clip.spec.session_id]
        for picture, wanted in zip(found, reference_pictures(clip), strict=True):
            assert picture is not None
            assert torch.equal(picture, wanted)


@pytest.mark.parametrize("scheduler", [TURBO_SCHEDULER, ANCESTRAL_SCHEDULER], ids=["euler", "ancestral"])
@pytest.mark.parametrize("pieces", [[[0], [1], [2]], [[0, 1], [2]]])
def test_in_pieces_with_a_bank_euler_gives_the_same_bits(
    monkeypatch: pytest.MonkeyPatch, pieces: list[list[int]], scheduler: dict[str, object]
) -> None:
    """What Euler goes on with is in the latent that travels: nothing else does."""
    monkeypatch.setattr(tiny_bank.tiny_denoiser(), "schedule", Schedule(scheduler))
    rule = NoiseRule.FRESH
    spec = banked("s", BankSettings(), steps=3, timestep_indices=(12, 25, 37), seed=5, noise_rule=rule)
    stream = Stream(spec, video(5), {3: Settings("b", 0.7, 3)})
    whole = in_pieces(stream, [[0, 1, 2]])
    for found, wanted in zip(in_pieces(stream, pieces), whole, strict=True):
        assert found is not None
        assert wanted is not None
        assert torch.equal(found, wanted)


def test_euler_draws_noise_once_and_lcm_again_for_each_step(euler: Schedule) -> None:
    settings = Settings(steps=2, timestep_indices=(25, 37))
    clean, x = torch.randn(2, 4, 8, 8, generator=torch.Generator().manual_seed(0))
    at, to = euler.steps(settings)
    following = euler.noisy(clean, x, settings, 0, 1)
    torch.testing.assert_close(following, to.alpha * clean + to.beta * (x - at.alpha * clean) / at.beta)
    assert torch.equal(following, euler.noisy(clean, x, replace(settings, seed=9), 7, 1))
    lcm = Schedule(SCHEDULER)
    drawn = noise(settings, 0, 1, (4, 8, 8))
    assert torch.equal(lcm.noisy(clean, x, settings, 0, 1), to.alpha * clean + to.beta * drawn)


def test_euler_ancestral_goes_on_with_some_of_both(euler_ancestral: Schedule) -> None:
    settings = Settings(steps=3, timestep_indices=(25, 37, 37))
    clean, x = torch.randn(2, 4, 8, 8, generator=torch.Generator().manual_seed(0))
    at, to, _ = euler_ancestral.steps(settings)
    left, drawn = (x - at.alpha * clean) / at.beta, noise(settings, 0, 1, (4, 8, 8))
    share = (to.beta / to.alpha) / (at.beta / at.alpha)
    wanted = to.alpha * clean + to.beta * (share * left + (1.0 - share**2) ** 0.5 * drawn)
    torch.testing.assert_close(euler_ancestral.noisy(clean, x, settings, 0, 1), wanted)
    other = replace(settings, seed=9)
    assert not torch.allclose(euler_ancestral.noisy(clean, x, other, 0, 1), wanted)
    # Where the timestep stays, nothing of the noise has gone that new noise could stand for.
    same = [euler_ancestral.noisy(clean, x, one, 0, 2) for one in (settings, other)]
    assert torch.equal(*same)
    first = replace(settings, noise_rule=NoiseRule.FIRST)
    found = euler_ancestral.noisy(clean, x, first, 0, 1)
    torch.testing.assert_close(found, to.alpha * clean + to.beta * share * left)


def test_leading_spacing_is_a_grid_of_its_own_but_for_lcm() -> None:
    """As diffusers has it in 50 steps; `steps_offset` moves it."""
    for name, own in (
        ("EulerDiscreteScheduler", EulerDiscreteScheduler),
        ("EulerAncestralDiscreteScheduler", EulerAncestralDiscreteScheduler),
    ):
        for spacing in ("leading", "trailing"):
            config = {**TURBO_SCHEDULER, "_class_name": name, "timestep_spacing": spacing}
            theirs = own.from_config(config)
            theirs.set_timesteps(LCM_GRID)
            schedule = Schedule(config)
            assert [schedule.timestep(index) for index in range(LCM_GRID)] == theirs.timesteps.tolist()
    leading = {**TURBO_SCHEDULER, "timestep_spacing": "leading"}
    assert Schedule(leading, Sampler.LCM).timestep(0) == 999
    assert Schedule({**leading, "steps_offset": 0}).timestep(49) == 0
    with pytest.raises(ConfigError, match="steps_offset"):
        Schedule({**leading, "steps_offset": 20})


@pytest.mark.parametrize("name", ["EulerDiscreteScheduler", "EulerAncestralDiscreteScheduler"])
def test_trailing_steps_of_euler_are_those_of_diffusers(name: str) -> None:
    """As an img2img pipeline takes the last `steps` of `count`: Lightning's four are not on the grid. Clients
    send strength in single precision.
    """
    kind = {each.__name__: each for each in (EulerDiscreteScheduler, EulerAncestralDiscreteScheduler)}[name]
    schedule, theirs = Schedule({**TURBO_SCHEDULER, "_class_name": name}), kind.from_config(TURBO_SCHEDULER)
    assert schedule.timesteps(Settings(strength=1.0, steps=4)) == (999, 749, 499, 249)
    for count in (*range(1, 17), 20, 25, 30, 40, 50):
        theirs.set_timesteps(count)
        for steps in range(1, min(count, 8) + 1):
            strength = torch.tensor(steps / count, dtype=torch.float32).item()
            found = schedule.timesteps(Settings(strength=strength, steps=steps))
            assert list(found) == [int(each) for each in theirs.timesteps[count - steps :]], (count, steps)
            listed = Settings(steps=1, timestep_indices=(12,))
            assert schedule.timesteps(listed) == (759,), "a list names entries of the grid"
    assert schedule.timesteps(Settings(strength=1e-4, steps=2)) == (0, 0)


@pytest.mark.parametrize("config", [SCHEDULER, {**TURBO_SCHEDULER, "timestep_spacing": "leading"}])
def test_lcm_and_leading_spacing_keep_to_the_grid(config: dict[str, object]) -> None:
    schedule = Schedule(config)
    for strength in (0.05, 0.4, 0.5, 0.75, 0.8, 1.0):
        for steps in range(1, 5):
            settings = Settings(strength=strength, steps=steps)
            assert schedule.timesteps(settings) == tuple(map(schedule.timestep, settings.visited))


def test_without_noise_between_steps_the_clean_latent_alone_goes_on() -> None:
    """StreamDiffusion's do_add_noise=False; noise still enters the first step, the same for every frame."""
    settings = Settings(steps=2, timestep_indices=(32, 45), noise_rule=NoiseRule.FIRST)
    schedule = Schedule(SCHEDULER)
    clean, x = torch.randn(2, 4, 8, 8, generator=torch.Generator().manual_seed(0))
    assert torch.equal(schedule.noisy(clean, x, settings, 3, 1), schedule.steps(settings)[1].alpha * clean)
    fixed = replace(settings, noise_rule=NoiseRule.FIXED)
    assert torch.equal(
        schedule.noisy(clean, clean, settings, 3, 0), schedule.noisy(clean, clean, fixed, 0, 0)
    )


@pytest.mark.parametrize(
    ("config", "lcm_lora", "sampler"),
    [
        (TURBO_SCHEDULER, False, Sampler.EULER),
        (TURBO_SCHEDULER, True, Sampler.LCM),
        (SCHEDULER, False, Sampler.LCM),
        ({"_class_name": "PNDMScheduler"}, False, Sampler.LCM),
        (ANCESTRAL_SCHEDULER, False, Sampler.EULER_ANCESTRAL),
        (ANCESTRAL_SCHEDULER, True, Sampler.LCM),
        ({}, False, Sampler.LCM),
    ],
)
def test_the_sampler_is_the_checkpoints(config: dict[str, object], lcm_lora: bool, sampler: Sampler) -> None:
    assert sampler_of(config, lcm_lora=lcm_lora) is sampler
    schedule = Schedule(config, sampler_of(config, lcm_lora=lcm_lora))
    assert (schedule.coefficients(99).c_skip == 0.0) is (sampler is not Sampler.LCM)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("use_karras_sigmas", True),
        ("use_beta_sigmas", True),
        ("timestep_type", "continuous"),
        ("final_sigmas_type", "sigma_min"),
    ],
)
def test_sigmas_that_are_not_of_the_schedule_are_refused_for_euler_alone(name: str, value: object) -> None:
    for scheduler in (TURBO_SCHEDULER, ANCESTRAL_SCHEDULER):
        with pytest.raises(ConfigError, match=name):
            Schedule({**scheduler, name: value})
    Schedule({**TURBO_SCHEDULER, name: value}, Sampler.LCM)


@pytest.mark.parametrize("indices", [(43, 25), (-1, 3), (25, 50), (25, 34, 43)])
def test_a_list_that_makes_no_sense_is_refused_by_name(indices: tuple[int, ...]) -> None:
    with pytest.raises(InvalidRequest) as refused:
        Settings(steps=2, timestep_indices=indices)
    assert refused.value.metadata == {"field": "timestep_indices"}


def test_a_list_and_strength_or_steps_replace_each_other() -> None:
    listed = SettingsChange(timestep_indices=(25, 34, 43)).apply(Settings(strength=0.8, steps=1))
    assert (listed.steps, listed.visited) == (3, (25, 34, 43))
    assert SettingsChange(prompt="b").apply(listed).visited == (25, 34, 43)
    by_strength = SettingsChange(strength=0.4).apply(listed)
    assert (by_strength.timestep_indices, by_strength.visited) == ((), (30, 36, 42))
    assert SettingsChange(steps=1).apply(listed).visited == (9,)
    assert listed.as_change().apply(Settings()) == listed
    assert by_strength.as_change().apply(listed) == by_strength
    assert SettingsChange(timestep_indices=[7, 9]).apply(listed).visited == (7, 9)  # type: ignore[arg-type]
    mixed = Settings(prompts=(WeightedPrompt("a", 1.0),), steps=1, timestep_indices=(7,))
    assert mixed.as_change().apply(Settings(prompt="b")) == mixed
    with pytest.raises(InvalidRequest):
        SettingsChange(timestep_indices=(25, 34), steps=3).apply(listed)


@pytest.fixture(scope="module")
def lcm(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_tiny_lcm(tmp_path_factory.mktemp("lcm"))


@pytest.mark.parametrize("guidance", [one for one in Guidance if one is not Guidance.NONE])
def test_other_guidance_beside_an_embedded_scale_is_refused(lcm: Path, guidance: Guidance) -> None:
    denoiser = load_denoiser(lcm, CPU, torch.float32)
    denoiser.prepare(Settings("a", guidance_scale=8.0))
    with pytest.raises(InvalidRequest, match="guidance built in") as refused:
        denoiser.prepare(Settings("a", guidance=guidance, guidance_scale=8.0))
    assert refused.value.metadata == {"field": "guidance"}


def test_rows_of_other_scales_share_a_forward(lcm: Path) -> None:
    denoiser = load_denoiser(lcm, CPU, torch.float32)
    x = torch.randn(3, 4, 8, 8, generator=torch.Generator().manual_seed(0))
    text = torch.cat([denoiser.conditioning.embed("a")] * 3)

    def predicted(rows: slice) -> Tensor:
        scales = [1.0, 4.0, 8.0][rows]
        given = denoiser.embedded_scales(scales)
        output: Tensor = denoiser.unet(
            x[rows], torch.tensor(499), encoder_hidden_states=text[rows], return_dict=False, **given
        )[0]
        return output

    with torch.inference_mode():
        alone = torch.cat([predicted(slice(row, row + 1)) for row in range(3)])
        torch.testing.assert_close(predicted(slice(0, 3)), alone, rtol=CLOSE, atol=CLOSE)


def test_a_unet_with_motion_modules_takes_embedded_scales_too(lcm: Path) -> None:
    denoiser = load_denoiser(lcm, CPU, torch.float32)
    x = torch.randn(2, 4, 8, 8, generator=torch.Generator().manual_seed(0))
    text = torch.cat([denoiser.conditioning.embed("a")] * 2)
    given = denoiser.embedded_scales([2.0, 9.0])
    with torch.inference_mode():
        (plain,) = denoiser.unet(x, 499, encoder_hidden_states=text, return_dict=False, **given)
        (other,) = denoiser.unet(
            x, 499, encoder_hidden_states=text, return_dict=False, **denoiser.embedded_scales([1.0, 1.0])
        )
        streaming = StreamingUNet(denoiser.unet, norm_groups=4)
        (found,) = streaming(x, 499, text, **given)
    assert torch.equal(found, plain)
    assert not torch.allclose(found, other)
