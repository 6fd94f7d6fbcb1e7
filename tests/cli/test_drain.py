"""`rearview drain` against replicas that answer, do not answer, or have nobody to take their sessions."""

from __future__ import annotations

import json
import logging
from collections.abc import Callable
from dataclasses import dataclass, field
from types import SimpleNamespace
from typing import Any

import pytest
import ray
from ray import serve
from ray.serve.exceptions import RayServeException
from rearview.cli.main import app
from support.shapes import shaped
from typer.testing import CliRunner, Result

pytestmark = pytest.mark.unit


@dataclass
class Cluster:
    """Stands in for Serve: the ingress's list of replicas, and what each says when told to leave."""

    stages: list[dict[str, Any]]
    failures: dict[str, Exception] = field(default_factory=dict)
    leaving: set[str] = field(default_factory=set)

    def answers(self, target: str) -> list[bool | Exception]:
        return [self.failures.get(name) or self._leave(name, target) for name in self.names]

    @property
    def names(self) -> list[str]:
        return [stage["replica_id"] for stage in self.stages]

    def _leave(self, name: str, target: str) -> bool:
        if name == target:
            self.leaving.add(name)
        return name == target


@dataclass
class Ingress:
    cluster: Cluster

    @property
    def describe(self) -> Ingress:
        return self

    def remote(self) -> Ingress:
        return self

    def result(self, timeout_s: float) -> dict[str, Any]:
        return {"stages": self.cluster.stages}


@dataclass
class Broadcast:
    answers: list[bool | Exception]

    def results(self, *, timeout_s: float, return_exceptions: bool = False) -> list[bool | Exception]:
        """As Ray Serve's."""
        for answer in self.answers:
            if isinstance(answer, Exception) and not return_exceptions:
                raise answer
        return self.answers


@dataclass
class Span:
    cluster: Cluster

    def broadcast(self, method: str, replica_id: str) -> Broadcast:
        assert method == "leave"
        return Broadcast(self.cluster.answers(replica_id))


def stage(
    replica_id: str, *, span: str = "fused", free_slots: int = 4, draining: bool = False
) -> dict[str, Any]:
    return {
        "replica_id": replica_id,
        "span": span,
        "free_slots": 0 if draining else free_slots,
        "draining": draining,
        "sessions": ["s"],
    }


def drain(
    monkeypatch: pytest.MonkeyPatch,
    cluster: Cluster,
    *arguments: str,
    handle: Callable[[str], Ingress] | None = None,
) -> Result:
    monkeypatch.setattr(ray, "init", lambda **_: None)
    monkeypatch.setattr(ray, "get_runtime_context", lambda: SimpleNamespace(gcs_address="here:6379"))
    monkeypatch.setattr(ray, "shutdown", lambda: None)
    monkeypatch.setattr(serve, "get_app_handle", handle or (lambda _: Ingress(cluster)))
    monkeypatch.setattr(serve, "get_deployment_handle", lambda *_: Span(cluster))
    return CliRunner().invoke(app, ["drain", *arguments, "--no-wait"])


def test_ray_says_nothing_below_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("ray", "ray.serve"):
        monkeypatch.setattr(logging.getLogger(name), "level", logging.INFO)
    drain(monkeypatch, Cluster([stage("meant")]), "meant")
    for name in ("ray", "ray.serve"):
        assert not logging.getLogger(f"{name}._private.worker").isEnabledFor(logging.WARNING)


def test_a_sibling_that_is_dead_keeps_no_replica_from_leaving(monkeypatch: pytest.MonkeyPatch) -> None:
    stages = [stage("dead"), stage("meant"), stage("other")]
    cluster = Cluster(stages, failures={"dead": RuntimeError("actor died")})
    result = drain(monkeypatch, cluster, "meant")
    assert (result.exit_code, cluster.leaving) == (0, {"meant"}), result.output
    first, second = result.output.splitlines()
    assert first == "in the Ray at here:6379"
    assert second == "meant of fused leaves: 1 session to be moved off"


def test_what_it_did_is_said_to_programs(monkeypatch: pytest.MonkeyPatch) -> None:
    result = drain(monkeypatch, Cluster([stage("meant"), stage("other")]), "meant", "--json")
    said = shaped("drain", json.loads(result.stdout))
    assert said == {"replica_id": "meant", "span": "fused", "sessions": 1, "is_gone": False}


def test_a_replica_that_does_not_answer_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    cluster = Cluster([stage("meant"), stage("other")], failures={"meant": RuntimeError("actor died")})
    result = drain(monkeypatch, cluster, "meant")
    assert result.exit_code == 1
    assert "actor died" in result.output


@pytest.mark.parametrize(
    "others",
    [
        [],
        [stage("full", free_slots=0)],
        [stage("leaves", draining=True)],
        [stage("elsewhere", span="decode")],
    ],
    ids=["none", "full", "draining", "of-another-span"],
)
def test_a_replica_whose_sessions_find_no_other_stays_open_to_sessions(
    monkeypatch: pytest.MonkeyPatch, others: list[dict[str, Any]]
) -> None:
    cluster = Cluster([stage("meant"), *others])
    result = drain(monkeypatch, cluster, "meant")
    assert (result.exit_code, cluster.leaving) == (1, set())
    assert "no other replica of fused has a free slot" in result.output
    assert "NO_CAPACITY" in result.output
    assert drain(monkeypatch, cluster, "meant", "--force").exit_code == 0
    assert cluster.leaving == {"meant"}


def test_a_replica_that_leaves_already_may_be_told_again(monkeypatch: pytest.MonkeyPatch) -> None:
    cluster = Cluster([stage("meant", draining=True)])
    assert drain(monkeypatch, cluster, "meant").exit_code == 0


def test_a_ray_without_the_service_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    def nothing(_: str) -> Ingress:
        raise RayServeException("There is no Serve instance running on this Ray cluster.")

    result = drain(monkeypatch, Cluster([]), "any", handle=nothing)
    assert result.exit_code == 1
    assert "in the Ray at here:6379" in result.output
    assert "error: --app rearview: There is no Serve" in result.output
