"""NetworkPolicies, evaluated as a network plugin does: who reaches whom."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
from support.manifests import Manifest, kubectl, pick, render
from support.require import skip_or_fail

pytestmark = pytest.mark.unit

HOME = {"kubernetes.io/metadata.name": "rearview"}
ELSEWHERE = {"kubernetes.io/metadata.name": "elsewhere"}


@dataclass(frozen=True)
class Pod:
    labels: dict[str, str] = field(default_factory=dict)
    namespace: dict[str, str] = field(default_factory=lambda: HOME)


def ours(role: str) -> Pod:
    return Pod({"app.kubernetes.io/part-of": "rearview", "rearview.dev/role": role})


STRANGER = Pod({"app": "redis"})


@pytest.fixture(params=["base", "overlays/dev", "overlays/pipeline", "overlays/ha", "overlays/kind"])
def policies(request: pytest.FixtureRequest, root: Path) -> list[Manifest]:
    if kubectl() is None:
        skip_or_fail("kubectl is not installed")
    return pick(render(root / "k8s" / request.param), "NetworkPolicy")


def selects(selector: dict[str, Any], labels: dict[str, str]) -> bool:
    assert set(selector) <= {"matchLabels"}
    return bool(selector.get("matchLabels", {}).items() <= labels.items())


def is_peer(peer: dict[str, Any], pod: Pod) -> bool:
    assert set(peer) <= {"podSelector", "namespaceSelector"}
    if "namespaceSelector" not in peer and pod.namespace != HOME:
        return False
    return selects(peer.get("podSelector", {}), pod.labels) and selects(
        peer.get("namespaceSelector", {}), pod.namespace
    )


def passes(policies: list[Manifest], pod: Pod, direction: str, other: Pod, port: int) -> bool:
    """Whether what a pod may do in a direction (Ingress, Egress) lets a TCP connection through."""
    if pod.namespace != HOME:
        return True
    about = [
        policy["spec"]
        for policy in policies
        if selects(policy["spec"]["podSelector"], pod.labels) and direction in policy["spec"]["policyTypes"]
    ]
    side, key = ("from", "ingress") if direction == "Ingress" else ("to", "egress")
    return not about or any(
        (side not in rule or any(is_peer(peer, other) for peer in rule[side]))
        and ("ports" not in rule or {"protocol": "TCP", "port": port} in rule["ports"])
        for spec in about
        for rule in spec.get(key, [])
    )


def reaches(policies: list[Manifest], source: Pod, target: Pod, port: int) -> bool:
    return passes(policies, source, "Egress", target, port) and passes(
        policies, target, "Ingress", source, port
    )


@pytest.mark.parametrize("role", ["head", "ingress", "spans"])
def test_a_redis_of_this_namespace_is_reached_by_our_pods(policies: list[Manifest], role: str) -> None:
    assert reaches(policies, ours(role), STRANGER, 6379)


@pytest.mark.parametrize("role", ["head", "ingress", "spans"])
def test_a_redis_of_another_namespace_is_reached_by_our_pods(policies: list[Manifest], role: str) -> None:
    assert reaches(policies, ours(role), Pod(namespace=ELSEWHERE), 6379)


def test_our_pods_reach_each_other(policies: list[Manifest]) -> None:
    assert reaches(policies, ours("ingress"), ours("spans"), 41234)


@pytest.mark.parametrize("role", ["head", "ingress", "spans"])
@pytest.mark.parametrize("port", [6379, 8265, 41234, 50051])
def test_others_do_not_reach_our_pods(policies: list[Manifest], role: str, port: int) -> None:
    for source in (STRANGER, Pod(namespace=ELSEWHERE)):
        assert not reaches(policies, source, ours(role), port)


def test_clients_reach_the_ingress_only_and_only_at_its_port(policies: list[Manifest]) -> None:
    client = Pod(namespace={**ELSEWHERE, "rearview.dev/client": "true"})
    assert reaches(policies, client, ours("ingress"), 50051)
    assert not reaches(policies, client, ours("ingress"), 9091)
    assert not reaches(policies, client, ours("spans"), 50051)


def test_our_pods_reach_nothing_but_what_is_named(policies: list[Manifest]) -> None:
    assert not reaches(policies, ours("spans"), STRANGER, 443)
    assert not reaches(policies, ours("ingress"), Pod(namespace=ELSEWHERE), 8080)
