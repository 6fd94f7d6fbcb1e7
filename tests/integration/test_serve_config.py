"""The Serve configuration of the Kubernetes manifests, run by a real local Ray."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import grpc
import numpy as np
import pytest
import yaml
from rearview.v1 import session_service_pb2 as sessions_pb
from rearview.v1 import session_service_pb2_grpc, settings_pb2, translation_service_pb2_grpc
from rearview.v1 import translation_service_pb2 as pb
from support.declared import declared
from support.manifests import kubectl, pick, render
from support.require import skip_or_fail

pytestmark = [pytest.mark.integration, pytest.mark.timeout(300)]

SIZE = 256
LOOPBACK = "127.0.0.1"


def serve_config(root: Path, tenants: Path) -> dict[str, Any]:
    """`serveConfigV2` of the dev overlay; only what names the pod's network and files is changed."""
    if kubectl() is None:
        skip_or_fail("kubectl is not installed")
    (service,) = pick(render(root / "k8s" / "overlays" / "dev"), "RayService")
    config: dict[str, Any] = yaml.safe_load(service["spec"]["serveConfigV2"])
    args = config["applications"][0]["args"]["config"]
    args["ingress"].update(host=LOOPBACK, port=0, metrics_port=0)
    args["link"].update(host=LOOPBACK)
    args["tenants_file"] = str(tenants)
    return config


@pytest.fixture
def address(root: Path) -> Iterator[str]:
    """Where the deployed application serves."""
    config = serve_config(root, root / "k8s" / "overlays" / "dev" / "tenants.yaml")
    with declared({"ingress": 1}) as ray:
        ray.deploy(config)
        yield ray.describe()["address"]


def test_the_manifests_serve_configuration_translates_for_its_tenant_only(address: str) -> None:
    with grpc.insecure_channel(address) as channel:
        stub = translation_service_pb2_grpc.TranslationServiceStub(channel)
        sessions = session_service_pb2_grpc.SessionServiceStub(channel)
        with pytest.raises(grpc.RpcError) as caught:
            sessions.ListSessions(sessions_pb.ListSessionsRequest())
        assert caught.value.code() is grpc.StatusCode.UNAUTHENTICATED

        image = np.full((SIZE, SIZE, 3), 90, np.uint8).tobytes()
        requests = [
            pb.TranslateRequest(
                open=pb.Open(
                    settings=settings_pb2.Settings(prompt="oil painting"),
                    drop_policy=pb.DROP_POLICY_LOSSLESS,
                    answer_format=pb.IMAGE_FORMAT_RGB,
                )
            ),
            *(
                pb.TranslateRequest(
                    frame=pb.Frame(frame_index=index, format=pb.IMAGE_FORMAT_RGB, image=image)
                )
                for index in range(3)
            ),
        ]
        token = [("authorization", "Bearer example-token-studio")]
        answers = list(stub.Translate(iter(requests), metadata=token))
        assert [answer.WhichOneof("message") for answer in answers] == ["opened", *["frame"] * 3]
        assert all(len(answer.frame.image) == SIZE * SIZE * 3 for answer in answers[1:])
