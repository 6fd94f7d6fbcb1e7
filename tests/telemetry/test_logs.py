"""Lines of the log say whose work it was, and nothing of what it was about."""

from __future__ import annotations

import asyncio
import io
import json
import logging
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from rearview.config import load_config
from rearview.engine.networks.model import Model
from rearview.local import PlainService
from rearview.telemetry.logging import concerning, concerns, configure_logging
from rearview.v1 import translation_service_pb2 as pb
from support.planted import RefusesPrompt
from support.raw_stream import RawStream, eventually, running
from support.tokens import Registry

pytestmark = [pytest.mark.integration, pytest.mark.timeout(180)]

TOKEN = "a-planted-token"
PROMPT = "a-planted-prompt"
IMAGE = b"a-planted-image"


@pytest.fixture
def written() -> Iterator[io.StringIO]:
    """What the service's own handler writes."""
    logger, stream = logging.getLogger("rearview"), io.StringIO()
    before = list(logger.handlers), logger.level, logger.propagate
    configure_logging("DEBUG", "json", stream)
    yield stream
    logger.handlers, logger.level, logger.propagate = before


def lines(text: str) -> list[dict[str, Any]]:
    return [json.loads(line) for line in text.splitlines()]


async def test_lines_of_an_ingress_and_of_a_replica_name_session_and_tenant(
    tmp_path: Path,
    plant_model: Callable[[Model], None],
    written: io.StringIO,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    plant_model(RefusesPrompt(PROMPT))
    registry = Registry(tmp_path, {"alpha": TOKEN})
    async with running(**registry.sections) as service, RawStream(service.address, TOKEN) as stream:
        opened = await stream.start("a harbour", drop_policy=pb.DROP_POLICY_LOSSLESS)
        await stream.control(1, prompt=PROMPT)
        await stream.frame(1, IMAGE)
        await stream.read_answers(1)
        session = service.sessions[opened.session_id].session
        monkeypatch.setattr(session.book, "recognise", fails)
        await stream.control(2, prompt="a harbour")
        await stream.frame(2, IMAGE)
        await stream.read_to_end()
    about = {"session_id": opened.session_id, "tenant": "alpha"}
    named = [line for line in lines(written.getvalue()) if about.items() <= line.items()]
    loggers = {line["logger"]: line["message"] for line in named}
    assert loggers["rearview.engine.forwards"] == "forward of 1 rows of encode failed"
    assert loggers["rearview.engine.engine"] == "settings could not be prepared"
    assert loggers["rearview.ingress.service"] == "session failed"
    for secret in (PROMPT, TOKEN, IMAGE.decode(), opened.resume_token, "a harbour"):
        assert secret not in written.getvalue()


def fails(*_: object) -> None:
    raise ValueError(PROMPT)


@pytest.fixture
def service(tmp_path: Path) -> Iterator[PlainService]:
    """Processes of their own, whose logs are JSON."""
    spans = [{"name": "whole", "operators": ["encode", "denoise-0", "denoise-1", "decode"], "replicas": 2}]
    content = {
        "model": {"checkpoint": "chain"},
        "spans": spans,
        "ingress": {"port": 0},
        "telemetry": {"logs": {"format": "json"}},
        **Registry(tmp_path, {"alpha": TOKEN}).sections,
    }
    with PlainService(load_config(content)) as one:
        yield one


async def test_processes_log_json_in_which_nothing_planted_is_seen(service: PlainService) -> None:
    logs = service._scratch.path / "logs"
    async with RawStream(service.address, TOKEN) as stream:
        opened = await stream.start(PROMPT, drop_policy=pb.DROP_POLICY_LOSSLESS)
        for number in range(3):
            await stream.frame(number, IMAGE)
        await stream.read_answers(3)
        await asyncio.to_thread(service.kill, "whole")
        await stream.frame(3, IMAGE)
        await stream.read_answers(1)
        assert stream.moves == [pb.CONTINUITY_EXACT]
    async with RawStream(service.address, "a-planted-token-that-is-wrong") as stream:
        await stream.read_to_end()
    about = {"session_id": opened.session_id, "tenant": "alpha", "level": "warning"}

    def told() -> list[dict[str, Any]]:
        texts = (log.read_text() for log in logs.glob("*.log"))
        found = (json.loads(line) for text in texts for line in text.splitlines() if line.startswith("{"))
        return [line for line in found if about.items() <= line.items()]

    await eventually(lambda: bool(told()))
    assert [line["message"].split(":")[0] for line in told()] == ["a session goes on in another lane"]
    whole = "".join(log.read_text() for log in logs.glob("*.log"))
    for secret in (PROMPT, TOKEN, IMAGE.decode(), opened.resume_token):
        assert secret not in whole


async def test_what_is_started_inside_is_about_the_same(written: io.StringIO) -> None:
    log = logging.getLogger("rearview.test")

    async def inside() -> None:
        log.info("in a task")
        concerns(tenant="beta")
        log.info("in a task", extra={"fields": {"session_id": "of the line"}})

    with concerning(session_id="s", tenant="alpha"):
        task = asyncio.create_task(inside())
        with concerning(session_id="t"):
            log.info("nested")
    await task
    log.info("outside")
    named = [
        (line["message"], line.get("session_id"), line.get("tenant")) for line in lines(written.getvalue())
    ]
    assert named == [
        ("nested", "t", "alpha"),
        ("in a task", "s", "alpha"),
        ("in a task", "of the line", "beta"),
        ("outside", None, None),
    ]
