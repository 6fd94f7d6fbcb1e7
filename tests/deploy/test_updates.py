"""What Ray Serve is told of how a span's replicas are replaced in an update, and what two builds share."""

from __future__ import annotations

from typing import Any

import pytest
from ray.experimental import internal_kv
from ray.serve import Application
from rearview.app import build_app
from rearview.config import load_config
from rearview.errors import ConfigError

pytestmark = pytest.mark.unit


def surges(*spans: dict[str, Any]) -> list[int]:
    """Per span, what Serve's deployment options say of an application with these keys of spans."""
    base = load_config({}).operators
    half = len(base) // 2
    cuts = [base] if len(spans) == 1 else [base[:half], base[half:]]
    content = {
        "topology": "fused" if len(spans) == 1 else "pipeline",
        "spans": [
            {"name": f"span-{i}", "operators": cut, **span}
            for i, (cut, span) in enumerate(zip(cuts, spans, strict=True))
        ],
    }
    ingress = build_app(load_config(content))._bound_deployment
    parts = [part._bound_deployment for part in ingress.init_args if isinstance(part, Application)]
    return [part._deployment_config.max_surge_percent for part in parts]


def test_each_span_says_how_many_replicas_an_update_may_start_first() -> None:
    assert surges({"max_surge_percent": 100, "max_replicas": 2}, {"max_surge_percent": 25}) == [100, 25]


def test_an_update_needs_no_room_for_another_replica_unless_it_is_told_so() -> None:
    assert surges({}) == [0]


@pytest.mark.parametrize("percent", [-1, 101])
def test_a_surge_that_serve_would_refuse_is_refused_with_its_name(percent: int) -> None:
    with pytest.raises(ConfigError, match="max_surge_percent"):
        load_config({"spans": [{"name": "a", "operators": ["encode"], "max_surge_percent": percent}]})


def secret_of_a_build(name: str = "rearview") -> str:
    content = build_app(load_config({"name": name}))._bound_deployment.init_args[0]
    secret: str = content["link"]["secret"]
    return secret


def test_builds_in_one_ray_share_a_secret_so_that_old_and_new_replicas_speak(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    kept: dict[bytes, bytes] = {}

    def put(key: bytes, value: bytes, overwrite: bool, namespace: bytes) -> None:
        assert not overwrite
        kept.setdefault(key, value)

    monkeypatch.setattr(internal_kv, "_internal_kv_initialized", lambda: True)
    monkeypatch.setattr(internal_kv, "_internal_kv_put", put)
    monkeypatch.setattr(internal_kv, "_internal_kv_get", lambda key, namespace: kept[key])
    assert secret_of_a_build() == secret_of_a_build()
    assert secret_of_a_build("another") != secret_of_a_build(), "two services share nothing"


def test_without_a_ray_every_build_has_a_secret_of_its_own() -> None:
    assert secret_of_a_build() != secret_of_a_build()


def test_clusters_that_take_over_from_each_other_share_a_secret(monkeypatch: pytest.MonkeyPatch) -> None:
    directory = {"redis_url": "redis://127.0.0.1:1/0", "takes_over": True}
    with pytest.raises(ConfigError, match=r"directory\.takes_over needs link\.secret"):
        build_app(load_config({"directory": directory}))
    for link in ({"secret": "ours"}, {"secret_file": "/run/secrets/link"}):
        assert build_app(load_config({"directory": directory, "link": link}))
    monkeypatch.setenv("REARVIEW_LINK_SECRET", "ours")
    assert build_app(load_config({"directory": directory}))
