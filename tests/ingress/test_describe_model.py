"""`ModelService`: a client learns what is served, as far as its tenant may use it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from rearview.client import Client, ImageFormat, Method, Style
from rearview.config import ServiceConfig, load_config
from rearview.contract.card import ModelCard, has_motion
from rearview.control.admission import Admission, Served
from rearview.control.methods import Offer
from rearview.control.offering import model_of
from rearview.errors import InvalidRequest, Reason
from rearview.ingress.admission import read_served
from rearview.ingress.auth import LOCAL_TENANT
from support.pocket_sessions import pocket_config
from support.raw_stream import running
from support.tokens import Registry

pytestmark = pytest.mark.integration


def served(config: ServiceConfig) -> Served:
    return read_served(config)


async def test_a_client_learns_what_the_service_serves() -> None:
    async with running() as service, Client(service.address) as client:
        model = await client.describe_model()
    config = service.config
    assert model == model_of(service.ingresses[0].admission.served, LOCAL_TENANT)
    assert (model.name, model.width, model.max_steps) == (config.model.name, config.model.width, 2)
    assert model.formats == (ImageFormat.OPAQUE,)
    assert model.takes_any_prompt
    assert model.styles == ()


def test_the_bundled_model_names_its_styles_methods_and_sizes() -> None:
    config = pocket_config()
    model = model_of(served(config), LOCAL_TENANT)
    card = ModelCard.read("pocket")
    assert {style.name: style.prompt for style in model.styles} == dict(card.styles)
    assert all(isinstance(style, Style) and style.phrases for style in model.styles)
    assert model.unknown_words("a watercolour of a harbour") == ("harbour",)
    assert model.methods == (Method.PER_FRAME, Method.STREAMV2V, Method.LIVE2DIFF)
    assert model.default_method is Method.PER_FRAME
    assert (model.width, model.height, model.min_side, model.side_multiple) == (64, 64, 64, 8)
    assert model.motion_side_multiple % 8 == 0
    assert not model.takes_any_prompt


@pytest.mark.parametrize(
    ("sections", "methods"),
    [
        ({}, [Method.PER_FRAME]),
        ({"bank": {}}, [Method.PER_FRAME, Method.STREAMV2V]),
        ({"bank": {"default": True}, "cache": {}}, list(Method)),
    ],
)
def test_only_methods_that_open_are_named(sections: dict[str, Any], methods: list[Method]) -> None:
    config = load_config({"spans": [{"name": "fused", "operators": load_config({}).operators}], **sections})
    offer = Offer(config.bank, config.cache, has_motion=has_motion(config.model.checkpoint))
    assert list(offer.methods) == methods
    assert model_of(served(config), LOCAL_TENANT).default_method is offer.default


def test_what_is_described_is_what_admission_takes() -> None:
    """The defaults that are told are those of a session that names none, the limits those that refuse."""
    from rearview.contract.opening import OpenRequest
    from rearview.contract.settings import SettingsChange

    tenant = LOCAL_TENANT.model_copy(update={"max_pixels": 64 * 128})
    one = served(pocket_config())
    model, admission = model_of(one, tenant), Admission(one)
    asked = OpenRequest(settings=SettingsChange(prompt="neon"))
    spec = admission.session("0" * 32, tenant, asked)
    assert (spec.width, spec.height, spec.max_steps) == (model.width, model.height, model.max_steps)
    assert (spec.settings.strength, spec.settings.steps) == (model.strength, model.steps)
    assert model.max_pixels == 64 * 128
    admission.check_resolution(tenant, 64, 128)
    with pytest.raises(InvalidRequest):
        admission.check_resolution(tenant, 72, 128)


async def test_nobody_learns_it_without_a_token(tmp_path: Path) -> None:
    registry = Registry(tmp_path)
    async with running(**registry.sections) as service:
        for token in (None, "beta-tokens", "gamma"):
            async with Client(service.address, token) as client:
                with pytest.raises(InvalidRequest) as caught:
                    await client.describe_model()
                assert caught.value.reason is Reason.TOKEN_INVALID
        async with Client(service.address, "beta-token") as client:
            assert (await client.describe_model()).name == service.config.model.name
