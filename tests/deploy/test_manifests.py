"""The rendered manifests: complete, consistent with each other and with the Serve config inside."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pytest
import yaml
from kubernetes_validate import SchemaNotFoundError
from kubernetes_validate import ValidationError as KubernetesValidationError
from ray.serve import Application
from rearview.app import INGRESS, build_app_from_args
from rearview.config import ServiceConfig, load_config
from rearview.errors import ConfigError
from rearview.ingress.clusters import SETTLE_S
from rearview.serve_options import SHUTDOWN_MARGIN_S
from rearview.v1 import translation_service_pb2
from support.gateway_api import gateway_problems
from support.manifests import CustomResources, Manifest, check_core, kubectl, pick, render, serve_problems
from support.require import skip_or_fail

pytestmark = pytest.mark.unit

TRANSLATION = translation_service_pb2.DESCRIPTOR.services_by_name["TranslationService"].full_name
OTHERS = ("Deployment", "StatefulSet")
"""Kinds whose pods are not of the Ray cluster."""
VARIANTS = ["base", "overlays/dev", "overlays/pipeline", "overlays/ha", "overlays/kind"]


@pytest.fixture(params=VARIANTS)
def objects(request: pytest.FixtureRequest, root: Path) -> list[Manifest]:
    if kubectl() is None:
        skip_or_fail("kubectl is not installed")
    return render(root / "k8s" / request.param)


@pytest.fixture
def base(root: Path) -> list[Manifest]:
    if kubectl() is None:
        skip_or_fail("kubectl is not installed")
    return copy.deepcopy(render(root / "k8s" / "base"))


@pytest.fixture(scope="module")
def custom(schemas: Path) -> CustomResources:
    return CustomResources(schemas)


def service(objects: list[Manifest]) -> Manifest:
    return pick(objects, "RayService")[0]


def serve_config(objects: list[Manifest]) -> dict[str, Any]:
    return yaml.safe_load(service(objects)["spec"]["serveConfigV2"])


def config(objects: list[Manifest]) -> ServiceConfig:
    return load_config(serve_config(objects)["applications"][0]["args"]["config"])


def templates(objects: list[Manifest]) -> dict[str, dict[str, Any]]:
    """Pod templates of the Ray cluster by role."""
    cluster = service(objects)["spec"]["rayClusterConfig"]
    groups = [cluster["headGroupSpec"], *cluster["workerGroupSpecs"]]
    return {
        group["template"]["metadata"]["labels"]["rearview.dev/role"]: group["template"] for group in groups
    }


def group(objects: list[Manifest], name: str) -> dict[str, Any]:
    groups = service(objects)["spec"]["rayClusterConfig"]["workerGroupSpecs"]
    return next(item for item in groups if item["groupName"] == name)


def named(objects: list[Manifest], kind: str, name: str) -> Manifest:
    return next(item for item in pick(objects, kind) if item["metadata"]["name"] == name)


def ports(template: dict[str, Any]) -> dict[str, int]:
    container = template["spec"]["containers"][0]
    return {port["name"]: port["containerPort"] for port in container["ports"]}


def test_every_object_passes_its_schema(objects: list[Manifest], custom: CustomResources) -> None:
    for item in objects:
        if custom.knows(item):
            assert custom.problems(item) == []
        elif item["apiVersion"].startswith("gateway."):
            assert gateway_problems(item) == []
        else:
            check_core(item)


def test_ray_service_uses_the_version_that_is_not_deprecated(objects: list[Manifest]) -> None:
    assert service(objects)["apiVersion"] == "ray.io/v1"


def test_serve_config_passes_serves_own_model_and_has_no_unknown_key(objects: list[Manifest]) -> None:
    assert serve_problems(serve_config(objects)) == []


def test_serve_config_carries_one_configuration_and_overrides_none_of_it(objects: list[Manifest]) -> None:
    (application,) = serve_config(objects)["applications"]
    assert application["import_path"] == "rearview.app:build_app_from_args"
    assert set(application["args"]) == {"config"}
    assert config(objects).name == application["name"]
    assert "deployments" not in application


def test_serve_builds_one_scaling_deployment_per_span_behind_the_ingress(
    objects: list[Manifest], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("REARVIEW_LINK_SECRET", "that of the pod")
    content = serve_config(objects)["applications"][0]["args"]["config"]
    content["model"]["checkpoint"] = str(tmp_path)
    ingress = build_app_from_args({"config": content})._bound_deployment
    spans = [part._bound_deployment for part in ingress.init_args if isinstance(part, Application)]
    assert ingress.name == INGRESS
    assert [span.name for span in spans] == [span["name"] for span in content["spans"]]
    for built, span in zip(spans, content["spans"], strict=True):
        scaling = built._deployment_config.autoscaling_config
        assert (scaling.min_replicas, scaling.max_replicas) == (span.get("replicas", 1), span["max_replicas"])
        per_pod = built._replica_config.max_replicas_per_node
        assert per_pod == (1 if span.get("metrics_port") else None)  # Two could not have the same port.


def test_grpc_port_is_the_same_everywhere(objects: list[Manifest]) -> None:
    port = config(objects).ingress.port
    ingress = templates(objects)["ingress"]
    (exposed,) = named(objects, "Service", "rearview-grpc")["spec"]["ports"]
    assert ports(ingress)["serve-grpc"] == port
    assert ports(templates(objects)["head"])["serve-grpc"] == port
    asked = ingress["spec"]["containers"][0]["readinessProbe"]["grpc"]
    assert asked == {"port": port, "service": TRANSLATION}, "ready is who can bring frames back"
    assert (exposed["port"], exposed["targetPort"]) == (port, "serve-grpc")
    assert exposed["appProtocol"] == "kubernetes.io/h2c"
    policies = {item["metadata"]["name"]: item["spec"] for item in pick(objects, "NetworkPolicy")}
    assert policies["rearview-clients"]["ingress"][0]["ports"] == [{"protocol": "TCP", "port": port}]


def test_metrics_ports_of_the_pods_are_those_of_the_configuration(objects: list[Manifest]) -> None:
    spans = {
        f"span-{index}-metrics": span.metrics_port
        for index, span in enumerate(config(objects).spans)
        if span.metrics_port
    }
    listed = ports(templates(objects)["spans"])
    assert {name: port for name, port in listed.items() if name.startswith("span-")} == spans
    assert len(set(listed.values())) == len(listed)
    assert ports(templates(objects)["ingress"])["app-metrics"] == config(objects).ingress.metrics_port


def test_metrics_ports_are_scraped_and_open_to_the_scraper(objects: list[Manifest]) -> None:
    monitors = pick(objects, "PodMonitor")
    policies = [item for item in pick(objects, "NetworkPolicy") if "metrics" in item["metadata"]["name"]]
    if not monitors:
        assert policies == []
        return
    listed = {role: metrics_ports(template) for role, template in templates(objects).items()}
    assert {role: scraped_ports(monitors, template) for role, template in templates(objects).items()} == {
        role: set(known) for role, known in listed.items()
    }
    opened = {port["port"] for policy in policies for port in policy["spec"]["ingress"][0]["ports"]}
    assert opened == {port for known in listed.values() for port in known.values()}


def metrics_ports(template: dict[str, Any]) -> dict[str, int]:
    return {name: port for name, port in ports(template).items() if name.endswith("metrics")}


def scraped_ports(monitors: list[Manifest], template: dict[str, Any]) -> set[str]:
    """Names of the pod's ports that a PodMonitor which selects the pod asks."""
    labels = template["metadata"]["labels"].items()
    asked = {
        endpoint["port"]
        for item in monitors
        if item["spec"]["selector"]["matchLabels"].items() <= labels
        for endpoint in item["spec"]["podMetricsEndpoints"]
    }
    return asked & set(ports(template))


def test_every_scraped_port_is_some_pods(objects: list[Manifest]) -> None:
    monitors = pick(objects, "PodMonitor")
    found = {name for template in templates(objects).values() for name in scraped_ports(monitors, template)}
    asked = {endpoint["port"] for item in monitors for endpoint in item["spec"]["podMetricsEndpoints"]}
    assert asked == found


def test_every_span_is_scraped_where_there_is_monitoring(objects: list[Manifest]) -> None:
    if pick(objects, "PodMonitor"):
        assert all(span.metrics_port for span in config(objects).spans)


def test_every_selector_finds_pods(objects: list[Manifest]) -> None:
    others = [item["spec"]["template"] for kind in OTHERS for item in pick(objects, kind)]
    labels = [template["metadata"]["labels"] for template in (*templates(objects).values(), *others)]
    for item in objects:
        spec = item.get("spec", {})
        selector = spec.get("podSelector", spec.get("selector", {}))
        wanted = selector.get("matchLabels", selector if item["kind"] == "Service" else {})
        assert any(wanted.items() <= found.items() for found in labels), item["metadata"]["name"]


def test_worker_groups_hold_all_replicas_that_may_run(objects: list[Manifest]) -> None:
    spans, workers = config(objects).spans, group(objects, "spans")
    limits = workers["template"]["spec"]["containers"][0]["resources"]["limits"]
    cpus, gpus = float(limits["cpu"]), float(limits.get("nvidia.com/gpu", 0))
    for pods, replicas in (
        (workers["minReplicas"], [span.replicas for span in spans]),
        (workers["maxReplicas"], [span.max_replicas or span.replicas for span in spans]),
    ):
        need = [(n * span.num_cpus, n * span.num_gpus) for n, span in zip(replicas, spans, strict=True)]
        assert sum(cpu for cpu, _ in need) <= pods * cpus
        assert sum(gpu for _, gpu in need) <= pods * gpus


def test_each_ingress_pod_takes_one_ingress_replica(objects: list[Manifest]) -> None:
    workers = group(objects, "ingress")
    assert workers["rayStartParams"]["resources"] == '"{\\"ingress\\": 1}"'
    assert config(objects).ingress.resources == {"ingress": 1}
    assert config(objects).ingress.replicas == workers["minReplicas"] == workers["replicas"]


def test_files_of_the_configuration_are_mounted(objects: list[Manifest]) -> None:
    def mounts(role: str) -> list[str]:
        container = templates(objects)[role]["spec"]["containers"][0]
        return [mount["mountPath"] for mount in container.get("volumeMounts", [])]

    tenants, checkpoint = config(objects).tenants_file, config(objects).model.checkpoint
    assert tenants is not None
    assert str(tenants.parent) in mounts("ingress")
    if checkpoint.startswith("/"):
        for role in templates(objects):
            assert any(checkpoint.startswith(f"{path}/") for path in mounts(role)), role


def test_variables_that_pods_get_are_read_by_the_service(objects: list[Manifest], root: Path) -> None:
    given = {
        variable["name"].removeprefix("REARVIEW_")
        for template in templates(objects).values()
        for variable in template["spec"]["containers"][0]["env"]
        if variable["name"].startswith("REARVIEW_")
    }
    source = "".join(path.read_text(encoding="utf-8") for path in (root / "services/rearview").rglob("*.py"))
    assert {name for name in given if f'environment("{name}"' not in source} == set()


def test_leases_and_ray_have_a_redis_each_or_none(objects: list[Manifest]) -> None:
    tolerance = service(objects)["spec"]["rayClusterConfig"].get("gcsFaultToleranceOptions")
    leases = config(objects).directory.redis_url
    assert (tolerance is None) == (leases is None)
    if tolerance is not None:
        assert leases is not None
        hosts = [urlsplit(url).hostname for url in (leases, tolerance["redisAddress"])]
        assert len(set(hosts)) == 2, hosts


def test_nodes_outlive_a_head_that_is_brought_back(objects: list[Manifest]) -> None:
    """Every pod waits as long, where there is state to come back with."""
    if "gcsFaultToleranceOptions" not in service(objects)["spec"]["rayClusterConfig"]:
        return
    for role, template in templates(objects).items():
        given = {each["name"]: each.get("value") for each in template["spec"]["containers"][0]["env"]}
        assert float(given["RAY_gcs_rpc_server_reconnect_timeout_s"]) >= 600, role


def test_both_clusters_of_an_upgrade_run_until_sessions_have_gone_over(objects: list[Manifest]) -> None:
    directory, edge = config(objects).directory, config(objects).ingress
    assert directory.takes_over == (directory.redis_url is not None)
    delay_s = service(objects)["spec"]["rayClusterDeletionDelaySeconds"]
    assert delay_s >= SETTLE_S + 2 * edge.drain_grace_s


def test_pods_are_restricted_and_bounded(objects: list[Manifest]) -> None:
    for role, template in templates(objects).items():
        pod, container = template["spec"], template["spec"]["containers"][0]
        assert pod["securityContext"]["runAsNonRoot"], role
        assert pod["securityContext"]["seccompProfile"] == {"type": "RuntimeDefault"}
        assert container["securityContext"] == {
            "allowPrivilegeEscalation": False,
            "capabilities": {"drop": ["ALL"]},
        }
        assert {"cpu", "memory"} <= set(container["resources"]["limits"])
        assert container["readinessProbe"]
        assert container["livenessProbe"]
        if role != "head":
            assert pod["automountServiceAccountToken"] is False


def drains_badly(objects: list[Manifest]) -> list[str]:
    """Worker pods whose node is gone before its replicas have drained."""
    found = []
    for role, template in templates(objects).items():
        container = template["spec"]["containers"][0]
        given = {variable["name"]: variable.get("value") for variable in container["env"]}
        drain_s = float(given.get("RAY_GRACEFUL_SHUTDOWN_DRAIN_TIMEOUT_S") or 0)
        needed_s = config(objects).ingress.drain_grace_s + SHUTDOWN_MARGIN_S
        grace_s = template["spec"].get("terminationGracePeriodSeconds", 30)
        if "lifecycle" in container:
            found.append(f"{role}: a hook that may stop Ray before it drains")
        if role != "head" and not needed_s <= drain_s < grace_s:
            found.append(f"{role}: {needed_s} <= {drain_s} < {grace_s} does not hold")
    return found


def test_a_pod_that_ends_lets_its_replicas_drain(objects: list[Manifest]) -> None:
    assert drains_badly(objects) == []


@pytest.mark.parametrize("change", ["hook", "variable", "grace"])
def test_a_pod_that_would_cut_its_replicas_off_is_found(base: list[Manifest], change: str) -> None:
    template = templates(base)["spans"]
    container = template["spec"]["containers"][0]
    if change == "hook":
        container["lifecycle"] = {"preStop": {"exec": {"command": ["ray", "stop"]}}}
    elif change == "variable":
        drain = "RAY_GRACEFUL_SHUTDOWN_DRAIN_TIMEOUT_S"
        container["env"] = [variable for variable in container["env"] if variable["name"] != drain]
    else:
        template["spec"]["terminationGracePeriodSeconds"] = 90
    assert [found.split(":")[0] for found in drains_badly(base)] == ["spans"]


def test_only_overlays_that_are_tried_carry_secrets(root: Path) -> None:
    if kubectl() is None:
        skip_or_fail("kubectl is not installed")
    assert {variant for variant in VARIANTS if pick(render(root / "k8s" / variant), "Secret")} == {
        "overlays/dev",
        "overlays/kind",
    }


def test_dev_overlay_needs_nothing_but_kuberay(root: Path) -> None:
    if kubectl() is None:
        skip_or_fail("kubectl is not installed")
    text = yaml.safe_dump_all(render(root / "k8s" / "overlays/dev"))
    assert "nvidia.com/gpu: " not in text
    assert "monitoring.coreos.com" not in text
    assert "persistentVolumeClaim" not in text


# Mistakes that a careless edit makes. Each must be found, else the checks above prove nothing.


@pytest.mark.parametrize(
    ("path", "wrong"),
    [
        (["spec", "rayClusterConfig", "workerGroupSpecs", 1, "maxReplica"], 8),
        (["spec", "rayClusterConfig", "enableInTreeAutoscalin"], True),
        (["spec", "rayClusterConfig", "workerGroupSpecs", 1, "maxReplicas"], "eight"),
        (["spec", "rayClusterConfig", "headGroupSpec", "template", "spec", "container"], []),
        (["spec", "rayClusterConfig", "gcsFaultToleranceOptions", "backend"], "memcached"),
        (["spec", "serveConfig"], "applications: []"),
    ],
)
def test_seeded_mistake_in_the_ray_service_is_found(
    base: list[Manifest], custom: CustomResources, path: list[Any], wrong: Any
) -> None:
    place: Any = service(base)
    for key in path[:-1]:
        place = place[key]
    place[path[-1]] = wrong
    assert custom.problems(service(base))


@pytest.mark.parametrize("kind", ["PodMonitor", "PrometheusRule"])
def test_seeded_mistake_in_a_monitoring_object_is_found(
    base: list[Manifest], custom: CustomResources, kind: str
) -> None:
    item = pick(base, kind)[0]
    item["spec"]["selectors"] = {}
    assert custom.problems(item)


@pytest.mark.parametrize("kind", ["Service", "NetworkPolicy", "PodDisruptionBudget", "Namespace"])
def test_seeded_mistake_in_a_core_object_is_found(base: list[Manifest], kind: str) -> None:
    item = pick(base, kind)[0]
    item.setdefault("spec", {})["selectorr"] = {}
    with pytest.raises(KubernetesValidationError, match="selectorr"):
        check_core(item)


def test_kind_without_schema_is_a_failure() -> None:
    with pytest.raises(SchemaNotFoundError):
        check_core({"apiVersion": "example.com/v1", "kind": "Gadget", "metadata": {"name": "a"}})


def test_seeded_mistake_in_the_serve_config_is_found(base: list[Manifest]) -> None:
    content = serve_config(base)
    content["applications"][0]["deployments"] = [{"name": "fused", "num_replica": 2}]
    content["proxy_locaton"] = "Disabled"
    found = "; ".join(serve_problems(content))
    assert "deployments.num_replica:" in found
    assert "proxy_locaton:" in found


def test_seeded_mistake_in_our_configuration_is_found(base: list[Manifest]) -> None:
    content = serve_config(base)["applications"][0]["args"]["config"]
    content["spans"][0]["max_replica"] = 9
    with pytest.raises(ConfigError, match="max_replica"):
        load_config(content)
