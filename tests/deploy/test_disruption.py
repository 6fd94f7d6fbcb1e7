"""PodDisruptionBudgets: what a node's drain may take of the Ray cluster's pods."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest
from support.manifests import Manifest, kubectl, pick, render
from support.require import skip_or_fail

pytestmark = pytest.mark.unit


@pytest.fixture(params=["base", "overlays/dev", "overlays/pipeline", "overlays/ha", "overlays/kind"])
def objects(request: pytest.FixtureRequest, root: Path) -> list[Manifest]:
    if kubectl() is None:
        skip_or_fail("kubectl is not installed")
    return copy.deepcopy(render(root / "k8s" / request.param))


def num_pods(objects: list[Manifest], selector: dict[str, str]) -> int:
    """Pods of the Ray cluster that a selector finds when as few run as may."""
    cluster = pick(objects, "RayService")[0]["spec"]["rayClusterConfig"]
    groups = [{**cluster["headGroupSpec"], "minReplicas": 1}, *cluster["workerGroupSpecs"]]
    found = (group["template"]["metadata"]["labels"] for group in groups)
    return sum(
        group["minReplicas"]
        for group, labels in zip(groups, found, strict=True)
        if selector.items() <= labels.items()
    )


def blocks_drains(objects: list[Manifest]) -> list[str]:
    """Budgets under which no pod may ever be evicted.

    All but an integer `minAvailable` needs the `scale` subresource of the pods' owner: RayCluster has none.
    """
    found = []
    for budget in pick(objects, "PodDisruptionBudget"):
        spec: dict[str, Any] = budget["spec"]
        pods = num_pods(objects, spec["selector"]["matchLabels"])
        least = spec.get("minAvailable")
        if pods and ("maxUnavailable" in spec or not isinstance(least, int) or least >= pods):
            found.append(budget["metadata"]["name"])
    return found


def test_a_node_drain_may_always_evict_a_pod(objects: list[Manifest]) -> None:
    assert blocks_drains(objects) == []


@pytest.mark.parametrize("budget", [{"maxUnavailable": 1}, {"minAvailable": "50%"}, {"minAvailable": 3}])
def test_a_budget_that_blocks_drains_for_ever_is_found(
    objects: list[Manifest], budget: dict[str, Any]
) -> None:
    selector = {"matchLabels": {"rearview.dev/role": "spans"}}
    spec = {"selector": selector, **budget}
    objects.append({"kind": "PodDisruptionBudget", "metadata": {"name": "seeded"}, "spec": spec})
    assert blocks_drains(objects) == ["seeded"]
