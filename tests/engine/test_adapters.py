"""LoRA sets: what is read and merged, and that sessions with different sets share a replica."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from rearview.config import load_config
from rearview.contract.chain import Operator, OperatorKind
from rearview.contract.memories import BankSettings, PromptChange
from rearview.contract.settings import Settings, SettingsChange, check_adapters
from rearview.engine.calibration import measure_costs
from rearview.engine.engine import Engine
from rearview.engine.memory.memoryless import Memoryless
from rearview.engine.networks.denoise import Denoiser
from rearview.engine.networks.model import DiffusionModel
from rearview.engine.reference.bank import PlainBank
from rearview.engine.reference.frame import denoise_latent
from rearview.engine.scheduler import CostTable, Scheduler
from rearview.engine.weights.adapters import NO_ADAPTERS
from rearview.engine.weights.checkpoint import load_denoisers, load_model
from rearview.engine.weights.formats import Additions, LoraFile
from rearview.errors import ConfigError, InvalidRequest, Reason
from safetensors.torch import load_file, save_file
from support.frames import planes_of
from support.loras import (
    CONV,
    LINEAR,
    OUT,
    POINTWISE,
    TEXT,
    Lora,
    random_lora,
    write_attention_processors,
    write_diffusers,
    write_kohya,
    write_peft,
    write_peft_folder,
)
from support.memories import composed
from support.tiny import session, whole_chain, write_tiny_checkpoint
from support.tiny_bank import Stream, banked, denoise_span, gap, play, tiny_bank, video

pytestmark = pytest.mark.unit

CPU = torch.device("cpu")
ATTENTION = [LINEAR, OUT]
ALL = [*ATTENTION, CONV, POINTWISE, TEXT]
SCALE = 0.7

Writer = Callable[[Path, Lora, float | None], Path]


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    torch.set_num_threads(1)
    return write_tiny_checkpoint(tmp_path_factory.mktemp("tiny"))


@pytest.fixture(scope="module")
def plain(checkpoint: Path) -> dict[str, torch.Tensor]:
    """Weights of UNet and text encoder by path, without any LoRA."""
    return weights(load(checkpoint, Additions())[NO_ADAPTERS])


@pytest.fixture(scope="module")
def styled(
    checkpoint: Path, plain: dict[str, torch.Tensor], tmp_path_factory: pytest.TempPathFactory
) -> Additions:
    """Two sets and an LCM-LoRA, all of layers that overlap in part."""
    folder = tmp_path_factory.mktemp("loras")
    oil = write_kohya(folder / "oil.safetensors", random_lora(plain, [LINEAR, TEXT, CONV], seed=1), 3.0)
    ink = write_peft(folder / "ink.safetensors", random_lora(plain, [LINEAR, OUT], seed=2), 6.0)
    lcm = write_kohya(folder / "lcm.safetensors", random_lora(plain, [LINEAR, POINTWISE], seed=3), 1.0)
    sets = {"oil": [LoraFile(str(oil), 0.5), LoraFile(str(ink), 0.1)], "ink": [LoraFile(str(ink), 0.3)]}
    return Additions(lcm_lora=str(lcm), merged=sets)


def load(checkpoint: Path, additions: Additions, dtype: torch.dtype = torch.float64) -> dict[str, Denoiser]:
    return load_denoisers(checkpoint, CPU, dtype, additions)


def networks(denoiser: Denoiser) -> tuple[Any, Any]:
    return denoiser.unet, denoiser.conditioning.text_encoder


def weights(denoiser: Denoiser) -> dict[str, torch.Tensor]:
    """Under the set that is active."""
    unet, text_encoder = networks(denoiser)
    text = {key.removeprefix("text_model."): value for key, value in text_encoder.state_dict().items()}
    return {**unet.state_dict(), **text}


def under(denoisers: Mapping[str, Denoiser], name: str) -> dict[str, torch.Tensor]:
    """The weights with which a set runs."""
    denoisers[name].unet._sets.activate(name)
    return weights(denoisers[name])


def changed(before: Mapping[str, torch.Tensor], after: Mapping[str, torch.Tensor]) -> set[str]:
    return {
        key.removesuffix(".weight") for key, value in before.items() if not torch.equal(value, after[key])
    }


@pytest.mark.parametrize(
    ("write", "layers", "alpha"),
    [
        (write_kohya, ALL, None),
        (write_kohya, ALL, 6.0),
        (write_kohya, ALL, 1.0),
        (write_peft, ALL, None),
        (write_peft, ALL, 6.0),
        (write_peft_folder, ATTENTION, None),
        (write_peft_folder, ATTENTION, 1.0),
        (write_diffusers, ALL, None),
        (write_attention_processors, ATTENTION, None),
    ],
)
def test_every_format_adds_scale_times_alpha_over_rank(
    checkpoint: Path,
    plain: dict[str, torch.Tensor],
    tmp_path: Path,
    write: Writer,
    layers: list[str],
    alpha: float | None,
) -> None:
    lora = random_lora(plain, layers, rank=3)
    file = write(tmp_path / "style.safetensors", lora, alpha)
    denoisers = load(checkpoint, Additions(merged={"style": [LoraFile(str(file), SCALE)]}))
    factor = SCALE * (1.0 if alpha is None else alpha / 3)
    merged = under(denoisers, "style")
    assert changed(plain, merged) == set(layers)
    for layer, factors in lora.items():
        expected = plain[f"{layer}.weight"] + factor * factors.product
        torch.testing.assert_close(merged[f"{layer}.weight"], expected, rtol=0, atol=1e-5)


def test_a_prefix_of_training_on_several_devices_is_dropped(
    checkpoint: Path, plain: dict[str, torch.Tensor], tmp_path: Path
) -> None:
    lora = random_lora(plain, ALL, rank=3)
    file = write_kohya(tmp_path / "style.safetensors", lora, 6.0)
    named = {f"module.{key}": value for key, value in load_file(file).items()}
    save_file(named, tmp_path / "module.safetensors")
    sets = {name: [LoraFile(str(tmp_path / f"{name}.safetensors"))] for name in ("style", "module")}
    denoisers = load(checkpoint, Additions(merged=sets))
    expected = {key: value.clone() for key, value in under(denoisers, "style").items()}
    assert all(torch.equal(value, expected[key]) for key, value in under(denoisers, "module").items())


def test_loras_of_one_set_add_up_and_the_fused_one_is_in_every_set(
    checkpoint: Path, plain: dict[str, torch.Tensor], styled: Additions
) -> None:
    denoisers = load(checkpoint, styled)
    key = f"{LINEAR}.weight"
    oil, ink, lcm = (
        random_lora(plain, layers, seed=seed)[LINEAR].product
        for seed, layers in ((1, [LINEAR, TEXT, CONV]), (2, [LINEAR, OUT]), (3, [LINEAR, POINTWISE]))
    )
    base = plain[key] + lcm / 3
    expected = {NO_ADAPTERS: base, "oil": base + 0.5 * oil + 0.2 * ink, "ink": base + 0.6 * ink}
    for name, weight in expected.items():
        torch.testing.assert_close(under(denoisers, name)[key], weight, rtol=0, atol=1e-5)
    assert changed(plain, under(denoisers, NO_ADAPTERS)) == {LINEAR, POINTWISE}
    assert changed(plain, under(denoisers, "ink")) == {LINEAR, POINTWISE, OUT}


def test_switching_away_and_back_gives_the_very_same_tensors(checkpoint: Path, styled: Additions) -> None:
    denoisers = load(checkpoint, styled, torch.bfloat16)
    before = {key: value.clone() for key, value in under(denoisers, NO_ADAPTERS).items()}
    places = {key: value.data_ptr() for key, value in weights(denoisers[NO_ADAPTERS]).items()}
    for name in ("oil", "ink", "oil", "ink"):
        assert changed(before, under(denoisers, name))
    after = under(denoisers, NO_ADAPTERS)
    assert changed(before, after) == set()
    assert {key: value.data_ptr() for key, value in after.items()} == places


def test_sums_are_rounded_once(checkpoint: Path, styled: Additions) -> None:
    """Merged in float32 and then rounded, not bfloat16 plus bfloat16."""
    exact, rounded = (load(checkpoint, styled, dtype) for dtype in (torch.float32, torch.bfloat16))
    source = load(checkpoint, Additions(), torch.bfloat16)[NO_ADAPTERS]
    key = f"{LINEAR}.weight"
    change = (
        under(exact, "oil")[key]
        - load(checkpoint, Additions(), torch.float32)[NO_ADAPTERS].unet.state_dict()[key]
    )
    expected = (source.unet.state_dict()[key].float() + change).bfloat16()
    torch.testing.assert_close(under(rounded, "oil")[key], expected, rtol=2**-8, atol=0)


def test_memory_of_a_set_is_that_of_the_layers_it_changes(
    checkpoint: Path, plain: dict[str, torch.Tensor], styled: Additions
) -> None:
    sets = load(checkpoint, styled)["ink"].unet._sets
    expected = sum(plain[f"{layer}.weight"].numel() * 8 for layer in (LINEAR, OUT))
    assert (sets.bytes("ink"), sets.bytes(NO_ADAPTERS)) == (expected, 0)


def test_each_set_has_embeddings_of_its_own(checkpoint: Path, styled: Additions) -> None:
    denoisers = load(checkpoint, styled)
    embeds = {name: denoiser.conditioning.embed("a") for name, denoiser in denoisers.items()}
    assert not torch.allclose(embeds["oil"], embeds[NO_ADAPTERS])
    assert torch.equal(embeds["ink"], embeds[NO_ADAPTERS])  # It changes no layer of the text encoder.
    again = load(checkpoint, styled)
    for name in ("ink", "oil", NO_ADAPTERS):
        assert torch.equal(again[name].conditioning.embed("a"), embeds[name])


@pytest.mark.parametrize(
    ("key", "complaint"),
    [
        ("lora_unet_input_blocks_99_1_proj_in.lora_down.weight", "has not"),
        (f"unet.{LINEAR}.lora_magnitude_vector", "can be merged"),
        (f"lora_unet_{LINEAR.replace('.', '_')}.hada_w1_a", "can be merged"),
        ("lora_te2_text_model_encoder_layers_0_mlp_fc1.lora_down.weight", "has not"),
    ],
)
def test_a_lora_that_cannot_be_merged_is_refused_by_name(
    checkpoint: Path, plain: dict[str, torch.Tensor], tmp_path: Path, key: str, complaint: str
) -> None:
    tensors = {key: torch.ones(2, 4)}
    if key.endswith("lora_down.weight"):
        tensors[key.replace("lora_down", "lora_up")] = torch.ones(4, 2)
    save_file(tensors, tmp_path / "odd.safetensors")
    with pytest.raises(ConfigError, match=complaint) as caught:
        load(checkpoint, Additions(merged={"odd": [LoraFile(str(tmp_path / "odd.safetensors"))]}))
    assert "odd.safetensors" in str(caught.value)


def test_a_lora_of_another_base_model_is_refused(
    checkpoint: Path, plain: dict[str, torch.Tensor], tmp_path: Path
) -> None:
    wider = {**plain, f"{LINEAR}.weight": torch.zeros(320, 320)}
    file = write_kohya(tmp_path / "wide.safetensors", random_lora(wider, [LINEAR]), None)
    with pytest.raises(ConfigError, match=r"model\.lcm_lora: .*320x320.*another base model"):
        load(checkpoint, Additions(lcm_lora=str(file)))


def test_half_a_lora_is_refused(checkpoint: Path, tmp_path: Path) -> None:
    save_file({f"unet.{LINEAR}.lora_A.weight": torch.ones(2, 16)}, tmp_path / "half.safetensors")
    with pytest.raises(ConfigError, match="lacks its"):
        load(checkpoint, Additions(lcm_lora=str(tmp_path / "half.safetensors")))


# --- Sessions


def model_of(checkpoint: Path, additions: Additions) -> tuple[DiffusionModel, dict[str, Denoiser]]:
    """The denoising span in float64, its adapters strong enough to be seen."""
    denoisers = load(checkpoint, additions)
    adapted = {name: denoiser for name, denoiser in denoisers.items() if name != NO_ADAPTERS}
    return DiffusionModel(
        None, denoisers[NO_ADAPTERS], device=CPU, dtype=torch.float64, adapted=adapted
    ), denoisers


def engine_of(model: DiffusionModel, batches: list[list[str]] | None = None) -> Engine:
    memory = tiny_bank(8)
    engine = Engine(denoise_span(), model, composed(memory), Scheduler(CostTable(), 16), clock=lambda: 0.0)
    if batches is not None:
        forward = model.forward

        def recorded(rows: Sequence[Any], view: Any) -> Any:
            batches.append([row.settings.adapters for row in rows])
            return forward(rows, view)

        engine._forwards._model = type(
            "Recording",
            (),
            {"group": model.group, "prepare": model.prepare, "forward": staticmethod(recorded)},
        )()
    return engine


def streams() -> list[Stream]:
    """Sessions under both sets and none, with and without a bank, one of them switching live."""
    kinds = [
        ("oil", None),
        ("", None),
        ("ink", BankSettings(interval=2)),
        ("oil", BankSettings()),
        ("", BankSettings()),
    ]
    made = [
        Stream(
            banked(f"s{i}", bank, adapters=adapters, prompt=f"p{i % 2}", seed=i, steps=1 + i % 3),
            video(5, seed=i),
        )
        for i, (adapters, bank) in enumerate(kinds)
    ]
    switching = Stream(banked("live", BankSettings(interval=2), adapters="oil"), video(6, seed=9))
    settings = switching.spec.settings
    switching.changes.update({2: replace(settings, adapters="ink"), 4: replace(settings, adapters="")})
    return [*made, switching]


def by_reference(denoisers: Mapping[str, Denoiser], stream: Stream) -> list[torch.Tensor | None]:
    layout = denoisers[NO_ADAPTERS].bank_layout
    assert layout is not None
    bank = None if stream.spec.bank is None else PlainBank(stream.spec.bank, layout)
    outputs: list[torch.Tensor | None] = []
    for n, latent in enumerate(stream.latents):
        settings = stream.settings(n)
        denoiser = denoisers[settings.adapters]
        outputs.append(denoise_latent(denoiser, latent[None], settings, n, torch.float64, bank)[0])
    return outputs


@pytest.mark.parametrize("seed", [0, 1])
def test_a_session_looks_the_same_alone_and_among_sessions_with_other_sets(
    checkpoint: Path, styled: Additions, seed: int
) -> None:
    model, denoisers = model_of(checkpoint, styled)
    together = play(engine_of(model), streams(), seed)
    for stream in streams():
        name = stream.spec.session_id
        assert gap(together[name], play(engine_of(model), [stream])[name]) <= 1e-9, name
        assert gap(together[name], by_reference(denoisers, stream)) <= 1e-9, name


def test_a_forward_has_rows_of_one_set_and_sets_share_the_replica(
    checkpoint: Path, styled: Additions
) -> None:
    model, _ = model_of(checkpoint, styled)
    batches: list[list[str]] = []
    play(engine_of(model, batches), streams())
    assert all(len(set(batch)) == 1 for batch in batches)
    assert {batch[0] for batch in batches} == {"", "oil", "ink"}
    assert max(len(batch) for batch in batches) > 1


def test_a_live_switch_changes_the_pictures_from_its_frame_on(checkpoint: Path, styled: Additions) -> None:
    model, _ = model_of(checkpoint, styled)
    spec = banked("live", None, adapters="oil")
    frames = video(4)
    stays = play(engine_of(model), [Stream(spec, frames)])["live"]
    changes = {2: replace(spec.settings, adapters="ink")}
    switches = play(engine_of(model), [Stream(spec, frames, changes)])["live"]
    assert gap(stays[:2], switches[:2]) <= 1e-9
    assert all(gap([a], [b]) > 1e-3 for a, b in zip(stays[2:], switches[2:], strict=True))


def test_a_switch_is_a_change_of_style_for_the_bank(checkpoint: Path, styled: Additions) -> None:
    """With prompt_change: clear, the first frame under the new set is that of an empty bank."""
    model, denoisers = model_of(checkpoint, styled)
    spec = banked("live", BankSettings(interval=1, prompt_change=PromptChange.CLEAR), adapters="oil")
    frames, ink = video(4), replace(spec.settings, adapters="ink")
    outputs = play(engine_of(model), [Stream(spec, frames, {3: ink})])["live"]
    empty = denoise_latent(denoisers["ink"], frames[3][None], ink, 3, torch.float64)
    assert gap([outputs[3]], [empty[0]]) <= 1e-9


def test_an_unknown_set_is_refused_by_its_field(checkpoint: Path, styled: Additions) -> None:
    model, _ = model_of(checkpoint, styled)
    with pytest.raises(InvalidRequest) as caught:
        model.prepare(Settings(prompt="a", adapters="charcoal"))
    assert caught.value.reason is Reason.SETTING_OUT_OF_RANGE
    assert caught.value.metadata == {"field": "adapters"}
    assert "ink, oil" in caught.value.message
    check_adapters(Settings(), ())
    check_adapters(Settings(adapters="oil"), {"oil": ()})


def test_a_service_without_sets_refuses_them(checkpoint: Path) -> None:
    model = load_model(str(checkpoint), whole_chain(), CPU, torch.float32)
    with pytest.raises(InvalidRequest, match="there are: none"):
        model.prepare(Settings(prompt="a", adapters="oil"))


def test_a_frame_under_an_unknown_set_ends_alone(checkpoint: Path, styled: Additions) -> None:
    """The edge refuses it; if one comes through all the same, its frames are dropped and others go on."""
    model, denoisers = model_of(checkpoint, styled)
    good, bad = (
        Stream(banked("good", None), video(2)),
        Stream(banked("bad", None, adapters="charcoal"), video(2)),
    )
    outputs = play(engine_of(model), [good, bad])
    assert outputs["bad"] == [None, None]
    assert gap(outputs["good"], by_reference(denoisers, good)) <= 1e-9


def test_sets_divide_denoising_only(checkpoint: Path, styled: Additions) -> None:
    model, _ = model_of(checkpoint, styled)
    spec = session("s")
    groups = {
        kind: {
            model.group(spec, replace(spec.settings, adapters=name), Operator(kind))
            for name in ("", "oil", "ink")
        }
        for kind in OperatorKind
    }
    assert {kind: len(found) for kind, found in groups.items()} == {
        OperatorKind.ENCODE: 1,
        OperatorKind.DENOISE: 3,
        OperatorKind.DECODE: 1,
    }


def test_rows_under_a_set_have_a_measured_cost(checkpoint: Path, styled: Additions) -> None:
    model, _ = model_of(checkpoint, styled)
    spec, span = session("s"), denoise_span([0])
    planes = [planes_of(video(1)[0])]
    costs = measure_costs(model, Memoryless(1), span, spec, planes, (1,), adapter_sets=("oil", "ink"))
    groups = [
        model.group(spec, replace(spec.settings, adapters=name), span.operators[0])
        for name in ("", "oil", "ink")
    ]
    seconds = {costs.seconds(group, 1) for group in groups}
    assert len(seconds) == 1
    assert seconds.pop() > 0


def test_a_change_of_settings_can_name_or_leave_the_set() -> None:
    settings = SettingsChange(adapters="oil").apply(Settings(prompt="a"))
    assert settings.adapters == "oil"
    assert SettingsChange(strength=0.5).apply(settings).adapters == "oil"
    assert SettingsChange(adapters="").apply(settings).adapters == ""


def test_sets_are_configured_by_name() -> None:
    config = load_config({"model": {"adapters": {"oil": [{"path": "oil.safetensors", "scale": 0.8}]}}})
    assert config.model.adapters["oil"][0].scale == 0.8
    with pytest.raises(ConfigError, match=r"model\.adapters: .*Oil Paint"):
        load_config({"model": {"adapters": {"Oil Paint": []}}})
