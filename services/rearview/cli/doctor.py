"""`rearview doctor`: whether this machine can run the service and the client, and what to do if not."""

from __future__ import annotations

import importlib
import os
import shutil
import socket
import sys
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from enum import Enum
from pathlib import Path
from typing import Annotated

import typer

from rearview.cli.failure import fails_in_one_line
from rearview.scratch import Scratch

__all__ = ["Check", "Verdict", "doctor"]

MIN_FREE_BYTES = 2 << 30
MIN_SHM_BYTES = 256 << 20
GRPC_PORT = 50051


class Verdict(Enum):
    """How a check went."""

    OK = "ok"
    WARN = "warn"
    FAIL = "fail"


@dataclass(frozen=True)
class Check:
    """One line of the answer."""

    name: str
    verdict: Verdict
    text: str
    remedy: str = ""


@fails_in_one_line
def doctor(
    ray: Annotated[bool, typer.Option(help="Also start a Ray of one CPU and stop it (seconds).")] = True,
) -> None:
    """Check what the service needs on this machine; exit code 1 if something is missing."""
    checks: list[Callable[[], Iterator[Check]]] = [
        check_python,
        check_torch,
        check_media,
        check_checkpoint,
        check_port,
        check_space,
    ]
    failed = False
    for check in [*checks, check_ray] if ray else checks:
        for result in check():
            _show(result)
            failed |= result.verdict is Verdict.FAIL
    if failed:
        raise typer.Exit(1)


def check_python() -> Iterator[Check]:
    """3.11 or newer."""
    version = ".".join(map(str, sys.version_info[:3]))
    is_new = sys.version_info >= (3, 11)
    verdict = Verdict.OK if is_new else Verdict.FAIL
    yield Check("python", verdict, version, "" if is_new else "install Python 3.11 or newer")


def check_torch() -> Iterator[Check]:
    """That it can be imported, and what it computes on."""
    try:
        torch = importlib.import_module("torch")
    except (ImportError, OSError) as error:
        yield Check("torch", Verdict.FAIL, str(error), "install the project anew: make setup")
        return
    yield Check("torch", Verdict.OK, f"{torch.__version__}, {torch.get_num_threads()} threads")
    if torch.cuda.is_available():
        _, total = torch.cuda.mem_get_info()
        yield Check("gpu", Verdict.OK, f"{torch.cuda.get_device_name()}, {total / 2**30:.0f} GiB")
        return
    remedy = "fine for the bundled model; larger ones need a CUDA GPU and a CUDA build of torch"
    yield Check("gpu", Verdict.WARN, "none, the CPU computes", remedy)


def check_media() -> Iterator[Check]:
    """The codecs of this PyAV."""
    try:
        av = importlib.import_module("av")
    except (ImportError, OSError) as error:
        yield Check("ffmpeg", Verdict.FAIL, str(error), "pip install av")
        return
    codecs = av.codecs_available
    missing = [name for name in ("h264", "mpeg4", "aac", "mjpeg", "png") if name not in codecs]
    if missing:
        lacking = f"PyAV {av.__version__} lacks {', '.join(missing)}"
        yield Check("ffmpeg", Verdict.FAIL, lacking, "pip install --force-reinstall --only-binary av av")
    elif "libx264" not in codecs:
        yield Check("ffmpeg", Verdict.WARN, "no libx264: MPEG-4 is written", "pip install the av wheel")
    else:
        yield Check("ffmpeg", Verdict.OK, f"PyAV {av.__version__} with libx264 and aac")


def check_checkpoint() -> Iterator[Check]:
    """That the bundled checkpoint is whole."""
    from rearview.config import load_config
    from rearview.contract.card import ModelCard, checkpoint_folder, has_motion
    from rearview.errors import ConfigError

    name = load_config({}).model.checkpoint
    remedy = "install the package with its data, or: rearview train pocket"
    try:
        folder, card = checkpoint_folder(name), ModelCard.read(name)
    except ConfigError as error:
        yield Check("checkpoint", Verdict.FAIL, str(error), remedy)
        return
    missing = [part for part in ("vae", "unet", "text_encoder", "tokenizer") if not (folder / part).is_dir()]
    if missing:
        yield Check("checkpoint", Verdict.FAIL, f"{folder} lacks {', '.join(missing)}", remedy)
        return
    megabytes = sum(file.stat().st_size for file in folder.rglob("*") if file.is_file()) / 1e6
    motion = "motion modules" if has_motion(name) else "no motion modules: no live2diff"
    yield Check("checkpoint", Verdict.OK, f"{name}, {megabytes:.1f} MB, {len(card.styles)} styles, {motion}")


def check_port() -> Iterator[Check]:
    """That the usual gRPC port is free."""
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(("127.0.0.1", GRPC_PORT))
        except OSError as error:
            remedy = "a service may be running; else: rearview up --port 0"
            yield Check("port", Verdict.WARN, f"{GRPC_PORT}: {error.strerror}", remedy)
            return
    yield Check("port", Verdict.OK, f"{GRPC_PORT} is free")


def check_space() -> Iterator[Check]:
    """Space for Ray's files, for outputs, and in shared memory."""
    for name, folder in (("disk, temp", Path(tempfile.gettempdir())), ("disk, here", Path.cwd())):
        free = shutil.disk_usage(folder).free
        enough = free >= MIN_FREE_BYTES
        remedy = "" if enough else f"free {MIN_FREE_BYTES >> 30} GiB there, or set TMPDIR"
        yield Check(name, Verdict.OK if enough else Verdict.WARN, f"{free / 2**30:.1f} GiB free", remedy)
    shared = Path("/dev/shm")
    if shared.is_dir():
        free = shutil.disk_usage(shared).free
        enough = free >= MIN_SHM_BYTES
        remedy = "" if enough else "in a container: --shm-size=512m"
        yield Check("shared memory", Verdict.OK if enough else Verdict.WARN, f"{free >> 20} MiB free", remedy)


def check_ray() -> Iterator[Check]:
    """That a Ray of its own starts, computes and stops."""
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    try:
        ray = importlib.import_module("ray")
        scratch = Scratch()
        try:
            ray.init(
                address="local",
                num_cpus=1,
                include_dashboard=False,
                object_store_memory=80 << 20,
                log_to_driver=False,
                logging_level="ERROR",
                configure_logging=False,
                _temp_dir=str(scratch.path),
            )
            ray.get(ray.remote(lambda: os.getpid()).remote(), timeout=60)
        finally:
            ray.shutdown()
            scratch.remove()
    except Exception as error:  # whatever it is, it is the finding
        text = (str(error).splitlines() or [type(error).__name__])[0]
        remedy = "see shared memory and disk above; ports 10002-19999 must be free"
        yield Check("ray", Verdict.FAIL, text, remedy)
        return
    yield Check("ray", Verdict.OK, f"{ray.__version__} starts, computes and stops")


def _show(check: Check) -> None:
    colour = {Verdict.OK: "green", Verdict.WARN: "yellow", Verdict.FAIL: "red"}[check.verdict]
    remedy = f"  -> {check.remedy}" if check.remedy else ""
    typer.echo(typer.style(f"{check.verdict.value:<5}", fg=colour) + f"{check.name:<15}{check.text}{remedy}")
