"""Secrets that are planted in a run with every kind of trouble are in no log, no answer and no metric."""

from __future__ import annotations

import asyncio
import io
import logging
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path

import grpc
import pytest
from rearview.client.call import Call
from rearview.engine.networks.model import Model
from rearview.telemetry.logging import configure_logging
from rearview.v1 import session_service_pb2 as sessions_pb
from rearview.v1 import translation_service_pb2 as pb
from support.planted import RefusesPrompt
from support.raw_stream import RawStream, assert_nothing_held, end_of, eventually, running
from support.tokens import Registry, replace

pytestmark = pytest.mark.integration

PROMPT = "a-planted-prompt"
REFUSED = "a-planted-prompt-that-fails"
GOOD = "a-planted-token-that-is-good"
WRONG = "a-planted-token-that-is-wrong"
LINK = "a-planted-secret-of-the-links"
FILE = "a-planted-value-in-a-broken-file"
IMAGE = b"a-planted-image"


@pytest.fixture
def written() -> Iterator[io.StringIO]:
    """What the service's own handler writes."""
    logger, stream = logging.getLogger("rearview"), io.StringIO()
    before = list(logger.handlers), logger.level, logger.propagate
    configure_logging("DEBUG", stream=stream)
    logger.propagate = True
    yield stream
    logger.handlers, logger.level, logger.propagate = before


async def test_nothing_that_was_planted_is_seen_anywhere(
    tmp_path: Path,
    plant_model: Callable[[Model], None],
    caplog: pytest.LogCaptureFixture,
    written: io.StringIO,
) -> None:
    plant_model(RefusesPrompt(REFUSED))
    caplog.set_level(logging.DEBUG)
    said, secrets = [], [PROMPT, REFUSED, GOOD, WRONG, LINK, FILE, IMAGE.decode()]
    registry = Registry(tmp_path, {"alpha": GOOD, "beta": "x" * 20})
    signed = registry.issuer.token()
    secrets += [signed, signed.split(".")[2]]
    async with running(**registry.sections, link={"secret": LINK}) as service:
        async with RawStream(service.address, GOOD) as stream:
            opened = await stream.start(PROMPT, drop_policy=pb.DROP_POLICY_LOSSLESS)
            secrets.append(opened.resume_token)
            await stream.frame(1, IMAGE)
            await stream.control(1, prompt=REFUSED)
            await stream.frame(2, IMAGE)
            await stream.read_answers(2)
            await stream.control(2, prompt=PROMPT * 1000)
            await stream.frame(3, IMAGE)
            await stream.read_answers(1)
            listing = await stream.sessions.ListSessions(
                sessions_pb.ListSessionsRequest(), metadata=stream.metadata
            )
            said.append(str(listing))
            replace(registry.path, f"- {{name: alpha, token_sha256: {FILE}}}")
            await eventually(lambda: "the former ones hold" in caplog.text)
            registry.write()
            await stream.write(pb.TranslateRequest(resume=pb.Resume(resume_token=opened.resume_token)))
            said.append(repr(await stream.read_to_end()))
        for token in (WRONG, signed[:-5], signed):
            async with RawStream(service.address, token) as stream:
                resume = pb.Resume(session_id=opened.session_id, resume_token=opened.resume_token[:-1])
                await stream.write(pb.TranslateRequest(resume=resume))
                said.append(repr(await stream.read_to_end()))
        async with RawStream(service.address, GOOD) as stream:
            method = stream.channel.stream_stream("/rearview.v1.TranslationService/Translate")
            raw = Call(method(metadata=stream.metadata))
            await raw.write(b"\xff\xff" + PROMPT.encode())
            end = await end_of(raw)
            assert end.code is grpc.StatusCode.INVALID_ARGUMENT
            said.append(repr(end))
        await assert_nothing_held(service)
        urls = [*service.metrics_urls, *(stage.describe()["metrics_url"] for stage in service.stages)]
        said += await asyncio.to_thread(lambda: [urllib.request.urlopen(url).read().decode() for url in urls])
        said += [repr(stage.describe()) for stage in service.stages]
    texts = [caplog.text, written.getvalue(), *said]
    assert len(written.getvalue().splitlines()) > 3, "nothing was logged"
    assert [(secret, text) for secret in secrets for text in texts if secret in text] == []
