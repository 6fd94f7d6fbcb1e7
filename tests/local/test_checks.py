"""What is wrong with a service is said before anything starts, with the name of the option."""

from __future__ import annotations

import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from rearview.config import load_config
from rearview.errors import ConfigError
from rearview.local.checks import check

pytestmark = pytest.mark.unit


@pytest.fixture
def taken() -> Iterator[int]:
    """A port on which somebody listens."""
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        listener.listen()
        yield listener.getsockname()[1]


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ({"model": {"checkpoint": "no-such-model"}}, "model.checkpoint 'no-such-model'"),
        ({"model": {"checkpoint": "gone/away/model.safetensors"}}, "model.checkpoint"),
        ({"model": {"vae": "./no-such-vae"}}, "model.vae: ./no-such-vae"),
        ({"model": {"depth": "./no-such-depth"}}, "model.depth: ./no-such-depth"),
        ({"tenants_file": "/no/such/tenants.yaml"}, "tenants_file: /no/such/tenants.yaml"),
        ({"link": {"secret_file": "/no/such/secret"}}, "link.secret_file: /no/such/secret"),
        (
            {"ingress": {"tls_cert_file": "/no/cert.pem", "tls_key_file": "/no/key.pem"}},
            "ingress.tls_cert_file: /no/cert.pem",
        ),
        (
            {"model": {"checkpoint": "empty"}, "cache": {"default": True}},
            "cache.default: the model has no motion modules",
        ),
    ],
)
def test_what_is_not_there_is_named_with_its_option(
    content: dict[str, Any], said: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "empty").mkdir()
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ConfigError) as caught:
        check(load_config({"ingress": {"port": 0}, **content}))
    assert said in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_port_that_is_taken_is_named(taken: int) -> None:
    with pytest.raises(ConfigError, match=f"ingress.port: {taken} of 127.0.0.1 is in use"):
        check(load_config({"ingress": {"port": taken}}))


@pytest.mark.parametrize("checkpoint", ["null", "chain:5+1", "pocket", "owner/name"])
def test_what_may_be_served_passes(checkpoint: str) -> None:
    check(load_config({"model": {"checkpoint": checkpoint}, "bank": {}, "cache": {}, "ingress": {"port": 0}}))


def test_the_check_needs_neither_torch_nor_ray() -> None:
    script = (
        "import sys; from rearview.config import load_config; from rearview.local import PlainService;"
        "from rearview.local.checks import check; check(load_config({'ingress': {'port': 0}}));"
        "print([m for m in ('torch', 'ray', 'diffusers', 'grpc') if m in sys.modules])"
    )
    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, check=True, timeout=60
    )
    assert done.stdout.strip() == "[]"
