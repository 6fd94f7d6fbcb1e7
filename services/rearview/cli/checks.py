"""What `rearview doctor` looks at on this machine: each check says how it went, and what to do about it."""

from __future__ import annotations

import contextlib
import hashlib
import importlib
import json
import os
import re
import shutil
import sys
import tempfile
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from enum import Enum
from pathlib import Path
from typing import TYPE_CHECKING

from rearview.errors import ConfigError
from rearview.machine import Machine, System, this_machine
from rearview.studio.folders import CLIENT, PAGE

if TYPE_CHECKING:
    from rearview.config import IngressConfig, ServiceConfig, SpanConfig

__all__ = ["CHECKS", "Check", "Verdict", "check_config", "check_ray", "ray_trouble"]

WITHOUT_RAY = "studio, translate and demo work without it"
RECORD = "rearview doctor --record run.json"
MIN_FREE_BYTES = 2 << 30
MIN_MODEL_BYTES = 5 << 30
"""SD-Turbo with its TAESD takes 2.6 GB in half precision, and twice that while a download is checked."""
MIN_MEMORY_BYTES = 3 << 30
MIN_SHM_BYTES = 256 << 20
PAGE_DOCUMENTS = ("index.html", "view.html")
PAGE_LINK = re.compile(r'(?:href|src)="/?static/([^"]+)"')
VIDEO_DEVICE = Path("/dev/video0")


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


def check_python() -> Iterator[Check]:
    """3.11 or newer."""
    version = ".".join(map(str, sys.version_info[:3]))
    is_new = sys.version_info >= (3, 11)
    verdict = Verdict.OK if is_new else Verdict.FAIL
    yield Check("python", verdict, version, "" if is_new else "install Python 3.11 or newer")


def check_system(machine: Machine | None = None) -> Iterator[Check]:
    """Which system this is, and whether anybody has run the service on it."""
    machine = machine or this_machine()
    text = f"{machine.system.value} {machine.release}, {machine.processor}, {machine.cores} cores"
    if not machine.untried:
        yield Check("system", Verdict.OK, text)
    elif machine.system is System.WINDOWS:
        yield Check("system", Verdict.FAIL, f"{text}: {machine.untried}", "install WSL2: docs/install.md")
    else:
        yield Check("system", Verdict.WARN, f"{text}: {machine.untried}", f"be the first: {RECORD}")
    free = machine.memory_bytes
    if free:
        enough = free >= MIN_MEMORY_BYTES
        remedy = "" if enough else "one replica and ingress take about 2 GiB: close what else runs"
        yield Check("memory", _either(enough), f"{free / 2**30:.1f} GiB", remedy)


def check_torch() -> Iterator[Check]:
    """That it can be imported, how it was built, and on what it computes."""
    try:
        torch = importlib.import_module("torch")
    except (ImportError, OSError) as error:
        yield Check("torch", Verdict.FAIL, str(error), "install the project anew: make clean demo")
        return
    from rearview.engine.devices import choose_device, choose_dtype, device_name, see

    seen = see()
    built = torch.version.cuda or torch.version.hip or "CPU"
    parts = [torch.__version__, f"built for {built}", f"{torch.get_num_threads()} threads"]
    parts += [] if seen.has_mkldnn else ["no oneDNN"]
    yield Check("torch", Verdict.OK, ", ".join(parts))
    for kind in seen.devices:
        device = torch.device(kind)
        yield Check("device", Verdict.OK, f"{kind}: {device_name(device)}{_device_memory(kind)}")
    chosen = choose_device("auto", seen)
    dtype = str(choose_dtype("auto", chosen.type, seen)).removeprefix("torch.")
    text = f"auto takes {chosen}, {dtype}"
    if chosen.type == "cpu":
        remedy = "fine for the bundled model; larger ones need a GPU and a torch that was built for it"
        yield Check("computes on", Verdict.WARN, text, remedy)
    else:
        yield Check("computes on", Verdict.OK, text)


def _device_memory(kind: str) -> str:
    """ ", 79 GiB free of 80"; empty where torch does not say."""
    torch = importlib.import_module("torch")
    if kind in ("cuda", "xpu"):
        free, total = getattr(torch, kind).mem_get_info()
        return f", {free / 2**30:.0f} GiB free of {total / 2**30:.0f}"
    return f", up to {torch.mps.recommended_max_memory() / 2**30:.0f} GiB" if kind == "mps" else ""


def check_config(config: ServiceConfig) -> Iterator[Check]:
    """What each replica of a deployment would compute on, on a machine like this one, and what is known of
    the memory that it takes.
    """
    from rearview.replica.identity import computes_on

    for span in config.spans:
        name, where = f"span {span.name}", f"{span.replicas} x {span.num_threads} threads"
        try:
            found = computes_on(config.model)
        except ConfigError as error:
            remedy = "model.device: auto takes what there is"
            yield Check(name, Verdict.FAIL, str(error), remedy)
            continue
        if not found["device"]:
            yield Check(name, Verdict.OK, f"no networks, {where}")
            continue
        text = f"{found['device_name']} ({found['device']}), {found['dtype']}"
        yield Check(name, Verdict.OK, f"{text}, {where}")
        yield _check_memory(config, span, found["dtype"])


def _check_memory(config: ServiceConfig, span: SpanConfig, dtype: str) -> Check:
    """Whether a replica fits, and into a host with all others, as far as that is known without a start."""
    from rearview.engine.device_memory import budget_of
    from rearview.engine.devices import pick_device
    from rearview.replica.needs import check_together, known_plan, sharing

    device = pick_device(config.model.device)
    is_on_cpu, verdict = device.type == "cpu", Verdict.FAIL
    budget = budget_of(device, *sharing(config, span, on_cpu=is_on_cpu))
    try:
        plan = known_plan(config, span, dtype, budget)
        verdict = Verdict.WARN
        if is_on_cpu and budget.num_bytes:
            check_together(config, dtype, budget.num_bytes)
    except ConfigError as error:
        remedy = "or run its replicas on several machines" if verdict is Verdict.WARN else ""
        return Check("memory", verdict, str(error), remedy)
    fewer = "" if span.fixed_slots else "; `auto` may then be fewer"
    return Check("memory", Verdict.OK, f"{plan}, and what a start measures{fewer}")


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


def check_camera(machine: Machine | None = None) -> Iterator[Check]:
    """Whether `translate -` would find one. It is not opened: its light would go on."""
    machine = machine or this_machine()
    studio = "the studio takes the browser's camera"
    if machine.system is System.WSL:
        yield Check("camera", Verdict.WARN, "WSL2 has none", studio)
    elif machine.system is not System.LINUX:
        yield Check("camera", Verdict.OK, "asked for when it is used")
    elif not VIDEO_DEVICE.exists():
        yield Check(
            "camera", Verdict.WARN, f"no {VIDEO_DEVICE}", f"plug one in, or translate a file; {studio}"
        )
    elif not os.access(VIDEO_DEVICE, os.R_OK | os.W_OK):
        yield Check("camera", Verdict.WARN, f"{VIDEO_DEVICE} is not yours", "sudo usermod -aG video $USER")
    else:
        yield Check("camera", Verdict.OK, str(VIDEO_DEVICE))


def check_page() -> Iterator[Check]:
    """That the studio's page is whole: what its documents name is there, libraries are what was vendored."""
    missing = [name for name in PAGE_DOCUMENTS if not (PAGE / name).is_file()]
    for name in set(PAGE_DOCUMENTS).difference(missing):
        text = (PAGE / name).read_text(encoding="utf-8")
        missing += [file for file in PAGE_LINK.findall(text) if not (PAGE / file).is_file()]
    missing += [] if (CLIENT / "link.js").is_file() else ["client/link.js"]
    libraries = PAGE / "vendor" / "vendor.json"
    known = json.loads(libraries.read_text(encoding="utf-8")) if libraries.is_file() else {}
    wrong = [name for name, about in known.items() if _sha256(libraries.with_name(name)) != about["sha256"]]
    if missing or wrong:
        found = [f"lacks {name}" for name in sorted(set(missing))] + [f"has another {name}" for name in wrong]
        yield Check("studio", Verdict.FAIL, f"{PAGE} {', '.join(found)}", "install the package anew")
        return
    files = {*PAGE.rglob("*"), *CLIENT.rglob("*")}
    sizes = [file.stat().st_size for file in files if file.is_file()]
    yield Check("studio", Verdict.OK, f"{len(sizes)} files, {sum(sizes) >> 10} KiB")


def _sha256(path: Path) -> str:
    """Empty for a file that is not there."""
    return hashlib.sha256(path.read_bytes()).hexdigest() if path.is_file() else ""


def check_port(edge: IngressConfig | None = None) -> Iterator[Check]:
    """That the usual gRPC port is free."""
    from rearview.config import IngressConfig
    from rearview.local.checks import check_free

    edge = edge or IngressConfig()
    try:
        check_free(edge)
    except ConfigError as error:
        remedy = "a service may be running; else: rearview up --port 0"
        yield Check("port", Verdict.WARN, str(error), remedy)
        return
    yield Check("port", Verdict.OK, f"{edge.port} is free")


def check_space() -> Iterator[Check]:
    """Space for temporary files, for outputs, for models, and in shared memory."""
    elsewhere = "free {} GiB there for SD-Turbo, or set REARVIEW_MODELS to another folder"
    folders = [
        ("disk, temp", Path(tempfile.gettempdir()), MIN_FREE_BYTES, "free {} GiB there, or set TMPDIR"),
        ("disk, here", Path.cwd(), MIN_FREE_BYTES, "free {} GiB there"),
        ("disk, models", _models_folder(), MIN_MODEL_BYTES, elsewhere),
    ]
    for name, folder, needed, remedy in folders:
        free = shutil.disk_usage(folder).free
        enough = free >= needed
        text = f"{free / 2**30:.1f} GiB free"
        yield Check(name, _either(enough), text, "" if enough else remedy.format(needed >> 30))
    shared = Path("/dev/shm")
    if shared.is_dir():
        free = shutil.disk_usage(shared).free
        enough = free >= MIN_SHM_BYTES
        remedy = "" if enough else "in a container: --shm-size=512m"
        yield Check("shared memory", Verdict.OK if enough else Verdict.WARN, f"{free >> 20} MiB free", remedy)


def _models_folder() -> Path:
    """The nearest that exists of where models are kept."""
    from rearview.models import models_folder

    kept = models_folder().absolute()
    return next(folder for folder in (kept, *kept.parents) if folder.is_dir())


def _either(good: bool) -> Verdict:
    return Verdict.OK if good else Verdict.WARN


def check_ray() -> Iterator[Check]:
    """That a Ray of its own starts, computes and stops."""
    from rearview.local.quiet_ray import quiet_ray
    from rearview.scratch import Scratch

    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    try:
        ray = importlib.import_module("ray")
        quiet_ray()
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
        yield ray_trouble(error, _load(), this_machine().cores)
        return
    yield Check("ray", Verdict.OK, f"{ray.__version__} starts, computes and stops")


def ray_trouble(error: Exception, load: float, cores: int) -> Check:
    """What a Ray that did not start means: one that is late on a busy machine says nothing against it."""
    text = (str(error).splitlines() or [type(error).__name__])[0]
    is_late = isinstance(error, TimeoutError) or "timed out" in text
    if is_late and load >= cores:
        busy = f"the machine is busy (load {load:.1f} on {cores} cores): try again when less runs"
        return Check("ray", Verdict.WARN, text, f"{busy}; {WITHOUT_RAY}")
    remedy = f"see shared memory and disk above; ports 10002-19999 must be free; {WITHOUT_RAY}"
    return Check("ray", Verdict.FAIL, text, remedy)


def _load() -> float:
    """How many processes want to compute, over the last minute; 0 where the system does not say."""
    with contextlib.suppress(AttributeError, OSError):
        return os.getloadavg()[0]
    return 0.0


CHECKS: Sequence[Callable[[], Iterator[Check]]] = (
    check_system,
    check_python,
    check_torch,
    check_media,
    check_camera,
    check_checkpoint,
    check_page,
    check_port,
    check_space,
)
"""In the order in which they are told; `check_ray` takes seconds."""
