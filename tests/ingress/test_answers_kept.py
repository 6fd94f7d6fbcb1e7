"""Answers that clients have not acknowledged: what one ingress keeps of them is counted to their tenant."""

from __future__ import annotations

import hashlib
from pathlib import Path

import pytest
import yaml
from rearview.errors import DropReason
from rearview.ingress.session import IngressSession
from rearview.v1 import translation_service_pb2 as pb
from support.raw_stream import RawStream, eventually, index, running
from support.service import InProcessService

pytestmark = [
    pytest.mark.integration,
    pytest.mark.one_ingress("these are the answers that the ingress itself has"),
]

LIMIT = 1 << 20
SIZE = 100_000


@pytest.fixture
def tenants(tmp_path: Path) -> str:
    """alpha may keep a megabyte. Its token is its name."""
    path = tmp_path / "tenants.yaml"
    hashed = hashlib.sha256(b"alpha").hexdigest()
    path.write_text(yaml.safe_dump([{"name": "alpha", "token_sha256": hashed, "max_kept_bytes": LIMIT}]))
    return str(path)


def image(number: int, size: int = SIZE) -> bytes:
    return bytes([number]) * size


def session_of(service: InProcessService, opened: pb.Opened) -> IngressSession:
    return service.sessions[opened.session_id].session


async def read_all(stream: RawStream, count: int) -> pb.Opened:
    """A session whose client reads its answers, and acknowledges none."""
    opened = await stream.start(drop_policy=pb.DROP_POLICY_LOSSLESS)
    for number in range(count):
        await stream.frame(number, image(number))
        await stream.read_answers(1)
    return opened


async def test_of_who_never_acknowledges_the_oldest_pictures_go_and_are_said_to_be_gone(tenants: str) -> None:
    async with running(tenants_file=tenants) as service:
        async with RawStream(service.address, "alpha") as modest, RawStream(service.address, "alpha") as rude:
            little = session_of(service, await read_all(modest, 5))
            opened = await read_all(rude, 30)
            session = session_of(service, opened)
            await eventually(lambda: session.book.num_bytes + little.book.num_bytes <= LIMIT)
            assert little.book.num_bytes == 5 * SIZE, "no more than an even share"
            gone = 30 - session.book.num_bytes // SIZE
            assert gone == 25
            assert service.counted("rearview_outputs_forgotten_total", span="ingress") == gone
            await modest.write(pb.TranslateRequest(credit=pb.Credit(received_answers=5)))
            await eventually(lambda: little.book.num_bytes == 0)
        async with RawStream(service.address, "alpha") as again:
            assert (await again.resume(opened, 0)).received_frames == 30
            answers = await again.read_answers(30)
            assert again.drops == [DropReason.FAULT] * gone
            assert [index(answer) for answer in answers] == list(range(30))
            assert [answer.frame.image for answer in answers[gone:]] == [image(n) for n in range(gone, 30)]
            await again.half_close()
            await again.read_to_end()
        await eventually(lambda: session._keeping.budget.answers.num_bytes == 0)


async def test_frames_wait_of_who_does_not_read_and_none_is_lost(tenants: str) -> None:
    """Answers that were never sent are not forgotten: the session's frames wait, and nobody else's do."""
    size, limits = 3 * SIZE, {"max_in_flight": 1, "max_waiting": 16}
    async with (
        running(tenants_file=tenants, limits=limits) as service,
        RawStream(service.address, "alpha") as slow,
        RawStream(service.address, "alpha") as quick,
    ):
        opened = await slow.start(drop_policy=pb.DROP_POLICY_LOSSLESS, answer_credit=2)
        session = session_of(service, opened)
        for number in range(17):
            await slow.frame(number, image(number, size))
        await slow.read_answers(2)
        await eventually(lambda: session.book.num_bytes > LIMIT)
        await read_all(quick, 40)
        assert session.feed.inputs.following <= 2 + LIMIT // size + 2
        assert session.book.num_bytes <= LIMIT + 2 * size
        await slow.write(pb.TranslateRequest(credit=pb.Credit(answer_credit=17)))
        answers = await slow.read_answers(15)
        assert [answer.frame.image for answer in answers] == [image(n, size) for n in range(2, 17)]
