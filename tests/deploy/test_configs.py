"""The named configurations and the container file."""

from __future__ import annotations

import hashlib
import re
from pathlib import Path

import pytest
import yaml
from rearview.config import TenantConfig, Topology, load_config
from rearview.errors import ConfigError
from rearview.ingress.auth import Tenants

pytestmark = pytest.mark.unit

DEPLOY = Path(__file__).resolve().parents[2] / "deploy"
CONFIGS = sorted(path for path in DEPLOY.glob("*.yaml") if path.name[:8] not in ("tenants.", "compose."))
NAME = re.compile(
    r"(?P<model>[a-z0-9]+)-(?P<hardware>cpu|\d*x?h100)-(?P<kind>fused|pipeline|scaling|container)"
)


@pytest.fixture(params=CONFIGS, ids=lambda path: path.stem)
def path(request: pytest.FixtureRequest) -> Path:
    return request.param


def test_configuration_loads_and_is_what_its_name_says(path: Path) -> None:
    config, name = load_config(path), NAME.fullmatch(path.stem)
    assert name is not None
    assert config.model.name == name["model"]
    assert config.model.device == ("cpu" if name["hardware"] == "cpu" else "cuda")
    assert sum(span.num_gpus for span in config.spans) == (
        0
        if name["hardware"] == "cpu"
        else int(name["hardware"].split("x")[0])
        if "x" in name["hardware"]
        else 1
    )
    assert (config.topology is Topology.PIPELINE) == (name["kind"] == "pipeline")
    assert any(span.max_replicas for span in config.spans) == (
        name["kind"] == "scaling" or name["hardware"] == "h100"
    )


def test_configuration_with_an_unknown_key_is_refused(path: Path) -> None:
    content = yaml.safe_load(path.read_text(encoding="utf-8"))
    for section in (content, content["model"], content["ingress"], *content.get("spans", [])):
        section["tpyo"] = 1
        with pytest.raises(ConfigError, match="tpyo"):
            load_config(content)
        del section["tpyo"]
    load_config(content)


@pytest.mark.parametrize(
    ("limits", "needed"),
    [({"max_image_bytes": 8 << 20}, 8 << 20), ({"max_pixels": 4096 * 2160}, 3 * 4096 * 2160)],
    ids=["encoded", "raw"],
)
def test_links_must_carry_every_frame_that_the_limits_let_in(limits: dict[str, int], needed: int) -> None:
    needed += 64 << 10
    assert load_config({"limits": limits, "link": {"max_frame_bytes": needed}})
    with pytest.raises(ConfigError, match=r"link\.max_frame_bytes .*limits\.max_image_bytes") as caught:
        load_config({"limits": limits, "link": {"max_frame_bytes": needed - 1}})
    controls = {"edges": {"path": "owner/it", "picture": "canny"}}
    with pytest.raises(ConfigError, match=r"link\.max_frame_bytes .*1 model\.controls"):
        load_config({"limits": limits, "model": {"controls": controls}, "link": {"max_frame_bytes": needed}})
    assert "limits.max_pixels" in str(caught.value)
    assert "Value error" not in str(caught.value)


def test_readme_lists_every_configuration(path: Path) -> None:
    assert f"`{path.name}`" in (DEPLOY / "README.md").read_text(encoding="utf-8")


def test_null_pipeline_has_three_spans() -> None:
    assert len(load_config(DEPLOY / "null-cpu-pipeline.yaml").spans) == 3


def test_example_tenants_are_known_by_the_documented_tokens() -> None:
    text = (DEPLOY / "tenants.example.yaml").read_text(encoding="utf-8")
    tenants = [TenantConfig.model_validate(item) for item in yaml.safe_load(text)]
    assert {tenant.name: tenant.token_sha256 for tenant in tenants} == {
        name: hashlib.sha256(f"example-token-{name}".encode()).hexdigest() for name in ("studio", "archive")
    }
    for tenant in tenants:
        assert f"example-token-{tenant.name}" in text
    Tenants.load(DEPLOY / "tenants.example.yaml")


def test_dev_overlay_uses_the_example_tenants() -> None:
    overlay = DEPLOY.parent / "k8s/overlays/dev/tenants.yaml"
    assert overlay.read_text(encoding="utf-8") == (DEPLOY / "tenants.example.yaml").read_text(
        encoding="utf-8"
    )


def _container_lines() -> list[str]:
    text = (DEPLOY / "Containerfile").read_text(encoding="utf-8")
    lines = [line for line in text.splitlines() if not line.lstrip().startswith("#")]
    return "\n".join(lines).replace("\\\n", " ").splitlines()


def test_container_copies_only_what_exists_and_is_let_into_the_context() -> None:
    allowed = {line[1:] for line in (DEPLOY.parent / ".dockerignore").read_text().split() if line[0] == "!"}
    copies = [line.split()[1:] for line in _container_lines() if line.startswith("COPY ")]
    sources = [word for words in copies if not words[0].startswith("--from") for word in words[:-1]]
    assert sources
    for source in sources:
        assert source.split("/")[0] in allowed
        assert source == "README.md" or list(DEPLOY.parent.glob(source)), source


def test_container_runs_as_the_user_of_the_pods_and_tells_its_health() -> None:
    lines = _container_lines()
    last_stage = lines[max(i for i, line in enumerate(lines) if line.startswith("FROM ")) :]
    users = [line.split()[1] for line in last_stage if line.startswith("USER ")]
    pods = yaml.safe_load((DEPLOY.parent / "k8s/base/ray-service.yaml").read_text(encoding="utf-8"))
    security = pods["spec"]["rayClusterConfig"]["headGroupSpec"]["template"]["spec"]["securityContext"]
    assert users == [f"{security['runAsUser']}:{security['runAsGroup']}"]
    assert sum(line.startswith("HEALTHCHECK ") for line in last_stage) == 1


def test_container_serves_a_configuration_that_it_carries() -> None:
    (command,) = (line for line in _container_lines() if line.startswith("CMD "))
    served = yaml.safe_load(command.removeprefix("CMD "))[-1]
    assert served.startswith("/etc/rearview/deploy/")
    assert load_config(DEPLOY / Path(served).name).ingress.host == "0.0.0.0"
