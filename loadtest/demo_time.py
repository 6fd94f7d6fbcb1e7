"""How long a newcomer waits: from `git clone` to a finished out/demo.mp4.

    python -m loadtest.demo_time

Clones what is committed here into a temporary folder and runs `make demo` there, with empty package
caches unless `--warm-caches`. Checks that the video has the frames that it should, and takes the
service's time to READY from what the demo prints.
"""

from __future__ import annotations

import os
import re
import signal
import subprocess
import tempfile
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from loadtest.figures import Figure, ResultFile, show
from loadtest.service import fail

__all__ = ["clean_environment", "main", "ready_seconds"]

ROOT = Path(__file__).resolve().parent.parent
MAX_DEMO_S = 240.0
MAX_READY_S = 30.0
MIN_FRAMES = 96
MIN_WIDTH, MIN_HEIGHT = 512, 256
"""Input and output of 256x256 side by side."""
_READY = re.compile(r"\bready\b[^\d\n]{0,24}(\d+(?:\.\d+)?) ?s\b", re.IGNORECASE)


def ready_seconds(output: str) -> float:
    """Seconds to READY as the demo printed them (`ready in 12.3 s`); NaN if it did not."""
    found = _READY.search(output)
    return float(found.group(1)) if found else float("nan")


def clean_environment(environment: Mapping[str, str], caches: Path | None) -> dict[str, str]:
    """An environment without this project's Python; `caches`: an empty folder for uv and pip to fill."""
    kept = {
        name: value
        for name, value in environment.items()
        if name not in ("VIRTUAL_ENV", "PYTHONPATH", "MAKEFLAGS")
    }
    if caches is not None:
        kept |= {"UV_CACHE_DIR": str(caches / "uv"), "PIP_CACHE_DIR": str(caches / "pip")}
    return kept


def main(
    source: Annotated[Path, typer.Option(help="Repository to clone.")] = ROOT,
    warm_caches: Annotated[bool, typer.Option(help="Let uv and pip use what they have stored.")] = False,
    timeout_s: Annotated[float, typer.Option(help="Give up after this.")] = 1200.0,
) -> None:
    """Time `make demo` from a bare clone."""
    with tempfile.TemporaryDirectory(prefix="demo-time-") as name:
        folder = Path(name)
        caches = None if warm_caches else folder / "caches"
        clone = folder / "rearview"
        started_s = time.monotonic()
        _clone(source, clone)
        output = _make_demo(clone, clean_environment(os.environ, caches), timeout_s)
        seconds = time.monotonic() - started_s
        frames, width, height = _probe(clone / "out" / "demo.mp4")
    problems = []
    if frames < MIN_FRAMES or width < MIN_WIDTH or height < MIN_HEIGHT:
        problems.append(f"demo.mp4 has {frames} frames of {width}x{height}")
    setting = f"{frames} frames, {'warm' if warm_caches else 'empty'} package caches"
    figures = [
        Figure("make demo, from git clone to out/demo.mp4", setting, seconds, "s", MAX_DEMO_S, at_most=True),
        Figure(
            "of it the service's start, to READY",
            setting,
            ready_seconds(output),
            "s",
            MAX_READY_S,
            at_most=True,
        ),
    ]
    command = f"python -m loadtest.demo_time{' --warm-caches' if warm_caches else ''}"
    detail = {"output_tail": output.splitlines()[-30:]}
    result = ResultFile.of("demo", command, figures, detail, problems)
    show(result, result.write(), Console())


def _clone(source: Path, clone: Path) -> None:
    try:
        subprocess.run(
            ["git", "clone", "--quiet", "--no-hardlinks", str(source), str(clone)],
            check=True,
            capture_output=True,
            text=True,
        )
    except FileNotFoundError:
        fail("git is missing")
    except subprocess.CalledProcessError as error:
        fail(f"{source} cannot be cloned: {error.stderr.strip()}")


def _make_demo(clone: Path, environment: Mapping[str, str], timeout_s: float) -> str:
    """What `make demo` printed. Ends the command with one line if it fails."""
    process = subprocess.Popen(
        ["make", "demo"],
        cwd=clone,
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
    )
    try:
        output, _ = process.communicate(timeout=timeout_s)
    except BaseException as error:
        os.killpg(process.pid, signal.SIGTERM)  # The demo stops what it started.
        process.wait()
        if isinstance(error, subprocess.TimeoutExpired):
            fail(f"make demo took longer than {timeout_s:g} s")
        raise
    if process.returncode:
        lines = [line for line in output.splitlines() if line.strip()]
        fail(f"make demo ended with {process.returncode}: {lines[-1] if lines else 'it said nothing'}")
    return output


def _probe(video: Path) -> tuple[int, int, int]:
    """Frames, width, height; counted by decoding, since a header may say anything."""
    import av

    if not video.exists():
        fail(f"make demo wrote no {video.name}")
    with av.open(str(video)) as container:
        stream = container.streams.video[0]
        return sum(1 for _ in container.decode(stream)), stream.width, stream.height


if __name__ == "__main__":
    typer.run(main)
