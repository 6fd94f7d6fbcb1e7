"""What stands beside the Ray cluster: a quota, Redis, Gateway, studio, and the overlay that uses them."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from rearview.config import load_config
from support.gateway_api import gateway_problems
from support.manifests import Manifest, kubectl, pick, render
from support.require import skip_or_fail

pytestmark = pytest.mark.unit

UNITS = {"": 1.0, "m": 1e-3, "Mi": 2.0**20, "Gi": 2.0**30, "Ti": 2.0**40}
NAMED = ("ConfigMap", "ServiceAccount", "Service", "PersistentVolumeClaim")


def rendered(root: Path, variant: str) -> list[Manifest]:
    if kubectl() is None:
        skip_or_fail("kubectl is not installed")
    return copy.deepcopy(render(root / "k8s" / variant))


@pytest.fixture
def ha(root: Path) -> list[Manifest]:
    return rendered(root, "overlays/ha")


def amount(quantity: str) -> float:
    number = quantity.rstrip("MGTim")
    return float(number) * UNITS[quantity.removeprefix(number)]


def pods(objects: list[Manifest]) -> Iterator[tuple[int, dict[str, Any]]]:
    """Every pod template, with how many pods of it there may be."""
    cluster = pick(objects, "RayService")[0]["spec"]["rayClusterConfig"]
    yield 1, cluster["headGroupSpec"]["template"]
    for group in cluster["workerGroupSpecs"]:
        yield group["maxReplicas"], group["template"]
    for kind in ("Deployment", "StatefulSet"):
        for item in pick(objects, kind):
            yield item["spec"]["replicas"], item["spec"]["template"]


def needed(objects: list[Manifest], kind: str, resource: str) -> float:
    """Of all pods there may be: two clusters in an upgrade, and the rest once."""
    total = 0.0
    for count, template in pods(objects):
        times = 2 if template["metadata"]["labels"].get("rearview.dev/role") in CLUSTER else 1
        for container in template["spec"]["containers"]:
            total += times * count * amount(str(container["resources"][kind].get(resource, "0")))
    return total


CLUSTER = ("head", "ingress", "spans")


@pytest.mark.parametrize("variant", ["base", "overlays/pipeline", "overlays/ha"])
def test_the_quota_holds_an_upgrade_at_its_largest(root: Path, variant: str) -> None:
    objects = rendered(root, variant)
    (quota,) = pick(objects, "ResourceQuota")
    hard = {name: amount(str(value)) for name, value in quota["spec"]["hard"].items()}
    assert needed(objects, "requests", "cpu") <= hard["requests.cpu"]
    assert needed(objects, "requests", "nvidia.com/gpu") <= hard["requests.nvidia.com/gpu"]
    for kind in ("requests", "limits"):
        assert needed(objects, kind, "memory") <= hard[f"{kind}.memory"]
    assert 2 * sum(count for count, _ in pods(objects)) <= hard["pods"]


def test_no_single_node_takes_what_is_there_once(ha: list[Manifest]) -> None:
    groups = {
        group["groupName"]: group
        for group in pick(ha, "RayService")[0]["spec"]["rayClusterConfig"]["workerGroupSpecs"]
    }
    budgets = {item["metadata"]["name"]: item["spec"] for item in pick(ha, "PodDisruptionBudget")}
    for name, group in groups.items():
        assert group["minReplicas"] >= 2
        terms = group["template"]["spec"]["affinity"]["podAntiAffinity"]
        (preferred,) = terms["preferredDuringSchedulingIgnoredDuringExecution"]
        labels = preferred["podAffinityTerm"]["labelSelector"]["matchLabels"].items()
        assert labels <= group["template"]["metadata"]["labels"].items()
        assert 1 <= budgets[f"rearview-{name}"]["minAvailable"] < group["minReplicas"]
    application = yaml.safe_load(pick(ha, "RayService")[0]["spec"]["serveConfigV2"])["applications"][0]
    config = load_config(application["args"]["config"])
    assert config.ingress.replicas >= 2
    assert all(span.replicas - span.spares >= 2 for span in config.spans)


def test_the_head_has_no_work(ha: list[Manifest]) -> None:
    head = pick(ha, "RayService")[0]["spec"]["rayClusterConfig"]["headGroupSpec"]
    assert head["rayStartParams"]["num-cpus"] == "0"


def test_each_redis_keeps_what_it_knows_and_evicts_nothing(ha: list[Manifest]) -> None:
    for item in pick(ha, "StatefulSet"):
        (container,) = item["spec"]["template"]["spec"]["containers"]
        (command,) = container["args"]
        for option in (
            "--appendonly yes",
            "--maxmemory-policy noeviction",
            '--requirepass "$REDIS_PASSWORD"',
        ):
            assert option in command
        (claim,) = item["spec"]["volumeClaimTemplates"]
        mounts = {mount["name"]: mount["mountPath"] for mount in container["volumeMounts"]}
        assert f"--dir {mounts[claim['metadata']['name']]} " in command
        least = amount(container["resources"]["limits"]["memory"])
        assert 0.8 * least >= 768 * 2**20, "a rewrite of the log needs room beside the data"
    hosts = {item["metadata"]["name"] for item in pick(ha, "StatefulSet")}
    assert hosts == {"rearview-redis", "rearview-ray-redis"}


def test_what_a_pod_names_is_there_or_a_secret_that_the_readme_makes(ha: list[Manifest], root: Path) -> None:
    there = {kind: {item["metadata"]["name"] for item in pick(ha, kind)} for kind in NAMED}
    readme = (root / "k8s/README.md").read_text(encoding="utf-8")
    for name in secrets(ha):
        assert f"secret generic {name} " in readme or f"secret tls {name} " in readme, name
    for _, template in pods(ha):
        account = template["spec"].get("serviceAccountName")
        assert account is None or account in there["ServiceAccount"]
        for volume in template["spec"].get("volumes", ()):
            if "configMap" in volume:
                assert volume["configMap"]["name"] in there["ConfigMap"]


def secrets(content: Any) -> set[str]:
    """Names of the Secrets that anything in a manifest refers to."""
    if isinstance(content, list):
        return set().union(*map(secrets, content)) if content else set()
    if not isinstance(content, dict):
        return set()
    found = set().union(*map(secrets, content.values())) if content else set()
    for key, name in (("secretKeyRef", "name"), ("secret", "secretName")):
        if isinstance(content.get(key), dict) and name in content[key]:
            found.add(content[key][name])
    return found | {each["name"] for each in content.get("certificateRefs", ())}


def test_the_studio_asks_the_service_through_a_proxy_in_its_pod(ha: list[Manifest]) -> None:
    (deployment,) = pick(ha, "Deployment")
    containers = {each["name"]: each for each in deployment["spec"]["template"]["spec"]["containers"]}
    service = next(item for item in pick(ha, "Service") if item["metadata"]["name"] == "rearview-grpc")
    target = f"--server=rearview-grpc:{service['spec']['ports'][0]['port']}"
    assert target in containers["studio"]["args"]
    (settings,) = pick(ha, "ConfigMap")
    assert "server studio 127.0.0.1:8600" in settings["data"]["haproxy.cfg"]
    assert f"bind :{containers['proxy']['ports'][0]['containerPort']}" in settings["data"]["haproxy.cfg"]


@pytest.mark.parametrize("kind", ["Gateway", "GRPCRoute"])
def test_the_gateway_leads_to_the_service_and_nothing_else(ha: list[Manifest], kind: str) -> None:
    (item,) = pick(ha, kind)
    assert gateway_problems(item) == []
    item["spec"]["backends"] = []
    assert gateway_problems(item), "a field that is not there is found"


def test_every_service_that_clients_call_is_routed(ha: list[Manifest], root: Path) -> None:
    (route,) = pick(ha, "GRPCRoute")
    (gateway,) = pick(ha, "Gateway")
    (rule,) = route["spec"]["rules"]
    protos = (root / "proto/rearview/v1").glob("*_service.proto")
    ours = {f"rearview.v1.{''.join(word.title() for word in path.stem.split('_'))}" for path in protos}
    assert {match["method"]["service"] for match in rule["matches"]} == {*ours, "grpc.health.v1.Health"}
    assert rule["backendRefs"] == [{"name": "rearview-grpc", "port": 50051}]
    assert route["spec"]["parentRefs"][0]["sectionName"] == gateway["spec"]["listeners"][0]["name"]
