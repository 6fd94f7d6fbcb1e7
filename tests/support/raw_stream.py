"""One Translate call over the raw stub: what a client of any language could send, right or wrong."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import AbstractContextManager, asynccontextmanager
from socketserver import BaseServer
from typing import Any, Self
from unittest import mock

import grpc
from google.protobuf import duration_pb2
from google.rpc import error_details_pb2
from grpc_status import rpc_status
from rearview.client.call import Call
from rearview.config import ServiceConfig, load_config
from rearview.errors import DOMAIN, DropReason, Reason
from rearview.v1 import session_service_pb2_grpc, settings_pb2, translation_service_pb2_grpc
from rearview.v1 import translation_service_pb2 as pb

from support.service import InProcessService, in_process_service

__all__ = [
    "End",
    "RawStream",
    "assert_nothing_held",
    "end_of",
    "eventually",
    "null_config",
    "open_streams",
    "quickly_stopped",
    "running",
]

DEADLINE_S = 20.0
OPERATORS = ("encode", "denoise-0", "denoise-1", "decode")


class End:
    """How a call ended."""

    def __init__(self, code: grpc.StatusCode, message: str, status: Any) -> None:
        self.code, self.message = code, message
        self.reason: Reason | None = None
        self.retry_after_s: float | None = None
        self.metadata: dict[str, str] = {}
        for detail in [] if status is None else status.details:
            info, retry = error_details_pb2.ErrorInfo(), error_details_pb2.RetryInfo()
            if detail.Unpack(info):
                assert info.domain == DOMAIN
                self.reason, self.metadata = Reason[info.reason], dict(info.metadata)
            elif detail.Unpack(retry):
                self.retry_after_s = retry.retry_delay.ToMilliseconds() / 1000

    def __repr__(self) -> str:
        return f"End({self.code}, {self.message!r}, {self.reason})"


async def end_of(call: Call) -> End:
    """How a call ends, read out to there."""
    try:
        while await call.read() is not None:
            pass
    except grpc.aio.AioRpcError as failure:
        return End(failure.code(), failure.details() or "", rpc_status.from_call(failure))
    return End(grpc.StatusCode.OK, "", None)


class RawStream:
    """Writes and reads as told; keeps what it has read."""

    def __init__(
        self,
        address: str,
        token: str | None = None,
        timeout_s: float | None = None,
        metadata: Sequence[tuple[str, str]] = (),
        **options: int,
    ) -> None:
        pairs = [("grpc.use_local_subchannel_pool", 1), *((f"grpc.{k}", v) for k, v in options.items())]
        self.channel = grpc.aio.insecure_channel(address, options=pairs)
        self.sessions = session_service_pb2_grpc.SessionServiceStub(self.channel)
        self.metadata = [*metadata, *([] if token is None else [("authorization", f"Bearer {token}")])]
        self.call = translation_service_pb2_grpc.TranslationServiceStub(self.channel).Translate(
            metadata=self.metadata, timeout=timeout_s
        )
        self._kept = Call(self.call)
        self._failure: grpc.aio.AioRpcError | None = None
        self.received: list[pb.TranslateResponse] = []
        self.opened = pb.Opened()
        self.frame_credit = 0

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        self.call.cancel()
        await self.channel.close()

    async def write(self, request: pb.TranslateRequest) -> None:
        """Send one message; a call that has ended shows so when it is read."""
        try:
            await asyncio.wait_for(self.call.write(request), DEADLINE_S)
        except (grpc.aio.AioRpcError, asyncio.InvalidStateError):
            return

    async def start(self, prompt: str | None = "a", **fields: Any) -> pb.Opened:
        """Open a session and read `opened`."""
        settings = fields.pop("settings", None) or settings_pb2.Settings(prompt=prompt)
        await self.write(pb.TranslateRequest(open=pb.Open(settings=settings, **fields)))
        response = await self.read()
        assert response is not None, await self.end()
        self.opened = response.opened
        assert self.opened.session_id, response
        return self.opened

    async def resume(self, opened: pb.Opened, received: int, **fields: Any) -> pb.Opened:
        """Resume a session and read `opened`."""
        request = pb.Resume(
            session_id=opened.session_id,
            resume_token=opened.resume_token,
            received_answers=received,
            **fields,
        )
        await self.write(pb.TranslateRequest(resume=request))
        response = await self.read()
        assert response is not None, await self.end()
        self.opened = response.opened
        return self.opened

    async def frame(
        self,
        index: int,
        image: bytes = b"frame",
        format: int = pb.IMAGE_FORMAT_OPAQUE,
        controls: Sequence[pb.ControlPicture] = (),
    ) -> None:
        offset = duration_pb2.Duration(seconds=index % 1000, nanos=index % 1000)
        await self.write(
            pb.TranslateRequest(
                frame=pb.Frame(
                    frame_index=index,
                    presentation_offset=offset,
                    format=pb.ImageFormat.ValueType(format),
                    image=image,
                    controls=controls,
                )
            )
        )

    async def control(self, control_id: int, **settings: Any) -> None:
        await self.write(
            pb.TranslateRequest(
                control=pb.Control(control_id=control_id, settings=settings_pb2.Settings(**settings))
            )
        )

    async def half_close(self) -> None:
        await self.call.done_writing()

    async def read(self) -> pb.TranslateResponse | None:
        """The next response; None when the call has ended, in whatever way."""
        try:
            response = await asyncio.wait_for(self._kept.read(), DEADLINE_S)
        except grpc.aio.AioRpcError as failure:
            self._failure = failure
            return None
        except asyncio.CancelledError:
            return None
        if response is None:
            return None
        assert response.frame_credit >= self.frame_credit, "credit fell"
        self.frame_credit = response.frame_credit
        self.received.append(response)
        return response

    async def read_answers(self, count: int) -> list[pb.TranslateResponse]:
        """Read until `count` more frames or drops have come."""
        answers: list[pb.TranslateResponse] = []
        while len(answers) < count:
            response = await self.read()
            assert response is not None, f"{len(answers)} of {count} answers, then {await self.end()}"
            if response.WhichOneof("message") in ("frame", "dropped"):
                answers.append(response)
        return answers

    async def read_to_end(self) -> End:
        while await self.read() is not None:
            pass
        return await self.end()

    async def end(self) -> End:
        """How the call ended: as its server says, where one of our writes met the end."""
        if (failure := self._failure) is not None:
            return End(failure.code(), failure.details() or "", rpc_status.from_call(failure))
        code = await asyncio.wait_for(self.call.code(), DEADLINE_S)
        status = await rpc_status.aio.from_call(self.call)
        return End(code, await self.call.details(), status)

    @property
    def answers(self) -> list[pb.TranslateResponse]:
        """Frames and drops, in order of receipt."""
        return [r for r in self.received if r.WhichOneof("message") in ("frame", "dropped")]

    @property
    def indices(self) -> list[int]:
        """`frame_index` of each answer."""
        return [index(answer) for answer in self.answers]

    @property
    def moves(self) -> list[int]:
        """Continuity of each notice that the session has moved."""
        notices = (r.notice for r in self.received if r.HasField("notice"))
        return [notice.continuity for notice in notices if notice.kind == pb.Notice.KIND_MOVED]

    @property
    def drops(self) -> list[DropReason]:
        """Reasons of the drops, in order."""
        return [DropReason(r.dropped.reason) for r in self.received if r.HasField("dropped")]


def index(answer: pb.TranslateResponse) -> int:
    """`frame_index` of a frame or a drop."""
    return answer.frame.frame_index if answer.HasField("frame") else answer.dropped.frame_index


async def eventually(holds: Callable[[], bool | Awaitable[bool]]) -> None:
    """Wait until a condition holds; a deadline makes it a failure."""
    async with asyncio.timeout(DEADLINE_S):
        while not (found if isinstance(found := holds(), bool) else await found):  # noqa: ASYNC110
            await asyncio.sleep(0.002)


async def assert_nothing_held(service: InProcessService, sessions: int = 0) -> None:
    """Every session but so many is gone: from ingresses, stages, engines, directory and tenants."""

    async def freed() -> bool:
        used = Counter({stage.describe()["span"]: 0 for stage in service.stages})
        for stage in service.stages:
            used[stage.describe()["span"]] += stage.num_sessions
        leases = await service.directory.list(None)
        return len(service.sessions) == len(leases) == sessions and set(used.values()) == {sessions}

    await eventually(freed)
    for stage in service.stages:
        assert stage._runner is not None
        engine_sessions, integrity = await stage._runner.call(
            lambda engine: (set(engine.sessions), engine.check_integrity())
        )
        assert integrity is None
        held = set(stage.describe()["sessions"])
        assert engine_sessions == held, f"the engine has {engine_sessions}, the replica {held}"


def open_streams(service: InProcessService) -> int:
    """Calls that are under way, as the metrics count them."""
    return int(service.counted("rearview_streams_open"))


def null_config(
    *,
    spans: Sequence[Sequence[str]] = (OPERATORS,),
    slots: int | str = 16,
    replicas: int = 1,
    **sections: Any,
) -> ServiceConfig:
    """A service that moves opaque bytes, cut into `spans`. Sections of the config by name."""
    content: dict[str, Any] = {
        "topology": "fused" if len(spans) == 1 else "pipeline",
        "spans": [
            {"name": f"span-{i}", "operators": list(operators), "slots": slots, "replicas": replicas}
            for i, operators in enumerate(spans)
        ],
        **sections,
    }
    content["model"] = {"checkpoint": "null", "width": 64, "height": 64, **sections.get("model", {})}
    content["ingress"] = {"port": 0, **sections.get("ingress", {})}
    return load_config(content)


@asynccontextmanager
async def running(**sections: Any) -> AsyncIterator[InProcessService]:
    """`in_process_service` of `null_config`."""
    with quickly_stopped():
        async with in_process_service(null_config(**sections)) as service:
            yield service


def quickly_stopped() -> AbstractContextManager[object]:
    """Metrics servers look every half second whether they should stop: too slow for many tests."""
    return mock.patch.object(BaseServer.serve_forever, "__defaults__", (0.01,))
