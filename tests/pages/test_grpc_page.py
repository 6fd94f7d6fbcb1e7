"""The lines of docs/grpc.md, as they stand, against a real service."""

from __future__ import annotations

import asyncio
import json
import re
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import simplejpeg
from support.raw_stream import running
from support.require import skip_or_fail
from support.tiny import write_tiny_checkpoint

pytestmark = [pytest.mark.integration, pytest.mark.timeout(120)]


def page(root: Path) -> list[str]:
    text = (root / "docs/grpc.md").read_text(encoding="utf-8")
    return re.findall(r"^```sh\n(.*?)^```$", text, re.MULTILINE | re.DOTALL)


async def told(line: str, folder: Path) -> str:
    """What a block writes to either stream."""
    process = await asyncio.create_subprocess_exec(
        *("bash", "-euo", "pipefail", "-c", line),
        cwd=folder,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.STDOUT,
    )
    text, _ = await process.communicate()
    assert process.returncode == 0, text.decode()
    return text.decode()


def documents(text: str) -> Iterator[Any]:
    """One after another, as buf writes messages."""
    decoder, at = json.JSONDecoder(), 0
    while rest := text[at:].lstrip():
        found, length = decoder.raw_decode(rest)
        at = len(text) - len(rest) + length
        yield found


async def test_every_line_is_answered(root: Path, tmp_path: Path) -> None:
    if shutil.which("npx") is None:
        skip_or_fail("npx is missing")
    (tmp_path / "proto").symlink_to(root / "proto")
    noise = np.random.default_rng(0).integers(0, 256, (64, 64, 3), dtype=np.uint8)
    (tmp_path / "256x256.jpg").write_bytes(simplejpeg.encode_jpeg(noise, colorsubsampling="420"))
    checkpoint = str(write_tiny_checkpoint(tmp_path / "tiny"))
    sections = {"model": {"checkpoint": checkpoint}, "ingress": {"reflection": True}}
    define, *blocks = page(root)
    async with running(**sections) as service:
        here = [block.replace("localhost:50051", service.address) for block in blocks]
        small = [block.replace('": 256', '": 64') for block in here]
        served, refused, health, frames = await asyncio.gather(
            *(told(define + block, tmp_path) for block in small)
        )
    model, sessions = documents(served)
    assert (model["model"]["width"], sessions) == (64, {})
    assert '"not_found"' in refused
    assert refused.rstrip().endswith("exit code 40")
    assert '"status": "SERVING"' in health
    assert "rearview.v1.TranslationService/Translate\n" in health
    answers = list(documents(frames))
    assert "sessionId" in answers[0]["opened"]
    assert [int(each["frame"].get("frameIndex", 0)) for each in answers if "frame" in each] == [0, 1]
    (applied,) = (each["controlApplied"] for each in answers if "controlApplied" in each)
    assert applied["settings"]["prompt"] == "neon lights"


def test_buf_is_the_makefiles(root: Path) -> None:
    makefile = (root / "Makefile").read_text(encoding="utf-8")
    (buf,) = re.findall(r"^BUF \?= (.*)$", makefile, re.MULTILINE)
    assert f"{{ {buf} curl " in page(root)[0]
