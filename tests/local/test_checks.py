"""What is wrong with a service is said before anything starts, with the name of the option."""

from __future__ import annotations

import socket
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import yaml
from rearview.config import load_config
from rearview.errors import ConfigError
from rearview.local import checks
from rearview.local.checks import check
from rearview.machine import this_machine

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


HUGE = {"topology": "fused", "cache": {}, "bank": {}, "ingress": {"port": 0}}
SPAN = {"name": "fused", "operators": ["encode", "denoise-0", "denoise-1", "decode"]}


@pytest.mark.parametrize("slots", [4096, "auto"])
def test_what_does_not_fit_into_memory_is_refused_with_the_sum_before_torch_is_imported(
    slots: int | str, tmp_path: Path
) -> None:
    """In a process of its own: what takes seconds is torch."""
    size = 1024 if slots == "auto" else 256
    model = {"device": "cpu", "dtype": "float32", "width": size, "height": size, "max_steps": 2}
    content = {**HUGE, "model": model}
    content["spans"] = [{**SPAN, "slots": slots}]
    if slots == "auto":
        content["cache"] = {"sink_frames": 32, "ring_frames": 32}
    path = tmp_path / "config.yaml"
    path.write_text(yaml.safe_dump(content))
    script = (
        "import sys, time; from pathlib import Path; from rearview.config import load_config;"
        "from dataclasses import replace; from rearview import machine;"
        "from rearview.errors import ConfigError;"
        "from rearview.local import PlainService, checks;"
        "small = replace(machine.this_machine(), memory_bytes=4 << 30);"
        "checks.this_machine = lambda: small; began_s = time.monotonic()\n"
        f"try: PlainService(load_config(Path({str(path)!r}))).__enter__()\n"
        "except ConfigError as error: print(error)\n"
        "print('torch' in sys.modules, time.monotonic() - began_s)"
    )
    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, check=True, timeout=60
    )
    said, last = done.stdout.splitlines()
    assert said.startswith("span fused needs "), done.stdout
    assert "and this machine has 4 GiB: weights " in said
    assert ("27 slots would fit" if slots == 4096 else "Not one slot fits") in said
    imported, seconds = last.split()
    assert imported == "False"
    assert float(seconds) < 2.0


def test_replicas_that_fit_alone_and_not_together_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(checks, "this_machine", lambda: replace(this_machine(), memory_bytes=4 << 30))
    content = {**HUGE, "model": {"device": "cpu", "dtype": "float32"}}
    check(load_config({**content, "spans": [{**SPAN, "slots": 16}]}))
    with pytest.raises(ConfigError, match=r"needs 7\.\d\d GiB .* has 4 GiB: 3 x fused 2\.\d\d GiB"):
        check(load_config({**content, "spans": [{**SPAN, "slots": 16, "replicas": 3}]}))


def test_where_a_device_may_be_found_nothing_is_said_of_the_host_s_memory(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    content = {**HUGE, "spans": [{**SPAN, "slots": 4096}]}
    for may, device in ((True, "auto"), (True, "cuda")):
        tiny = replace(this_machine(), memory_bytes=1, may_accelerate=may)
        monkeypatch.setattr(checks, "this_machine", lambda tiny=tiny: tiny)
        check(load_config({**content, "model": {"device": device}}))
    monkeypatch.setattr(checks, "this_machine", lambda: replace(tiny, may_accelerate=False))
    with pytest.raises(ConfigError, match="needs"):
        check(load_config({**content, "model": {"device": "auto"}}))


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
