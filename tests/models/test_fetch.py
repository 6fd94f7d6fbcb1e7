"""Fetching a model from a hub on loopback: resumed, checked, all of it or nothing."""

from __future__ import annotations

import json
import shutil
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
import rearview.models.fetching as fetch_module
from rearview.models import (
    FetchFailed,
    FetchReason,
    KnownModel,
    Licence,
    Progress,
    Repository,
    fetch,
    fetched,
    list_files,
    model_named,
    model_of_hub_id,
)
from rearview.models.fetching import MANIFEST
from rearview.models.listing import wanted_files
from support.hub import Hub, serve_hub

pytestmark = pytest.mark.integration

CHECKPOINT, VAE = "studio/turbo", "studio/taesd"
UNET = "unet/diffusion_pytorch_model.fp16.safetensors"
MIT = Licence("MIT", "https://example.org/licence")
WHOLE = {part: part for part in ("unet", "text_encoder", "tokenizer", "scheduler")}
MODEL = KnownModel(
    id="turbo",
    title="Turbo",
    note="",
    repositories=(Repository(CHECKPOINT, MIT, WHOLE), Repository(VAE, MIT, {"": "vae"})),
)
FILES = {
    CHECKPOINT: {
        "README.md": 500,
        "model_index.json": 100,
        "turbo.safetensors": 9_000,
        "unet/config.json": 900,
        UNET: 3_000_000,
        "unet/diffusion_pytorch_model.safetensors": 6_000_000,
        "text_encoder/config.json": 700,
        "text_encoder/model.fp16-00001-of-00002.safetensors": 40_000,
        "text_encoder/model.fp16-00002-of-00002.safetensors": 30_000,
        "text_encoder/model.safetensors.index.fp16.json": 300,
        "tokenizer/vocab.json": 3_000,
        "tokenizer/merges.txt": 2_000,
        "scheduler/scheduler_config.json": 400,
        "vae/config.json": 300,
        "vae/diffusion_pytorch_model.safetensors": 8_000,
    },
    VAE: {"config.json": 200, "diffusion_pytorch_model.bin": 5_000, "taesd_encoder.safetensors": 4_000},
}


@pytest.fixture(scope="module")
def repositories(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    root = tmp_path_factory.mktemp("hub")
    for hub_id, files in FILES.items():
        for number, (name, size) in enumerate(files.items()):
            path = root / hub_id / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(bytes((number * 31 + place * 7) % 251 for place in range(size)))
    return {hub_id: root / hub_id for hub_id in FILES}


@pytest.fixture
def hub(repositories: dict[str, Path], monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[Hub]:
    import huggingface_hub.constants as constants
    import huggingface_hub.file_download as file_download

    monkeypatch.setattr(fetch_module, "PAUSE_S", 0.001)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(file_download.constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
    with serve_hub(repositories) as served:
        yield served


def reason_of(failed: pytest.ExceptionInfo[FetchFailed]) -> FetchReason:
    assert failed.value.reason.name in str(failed.value)
    return failed.value.reason


def test_a_model_comes_with_what_it_needs_and_nothing_else(
    hub: Hub, repositories: dict[str, Path], tmp_path: Path
) -> None:
    listing = list_files(MODEL, hub.endpoint)
    told: list[Progress] = []
    folder = fetch(MODEL, tmp_path / "turbo", told.append, listing=listing, endpoint=hub.endpoint)
    names = {path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()}
    left_out = (
        "README.md",
        "model_index.json",
        "turbo.safetensors",
        "unet/diffusion_pytorch_model.safetensors",
    )
    wanted = {name for name in FILES[CHECKPOINT] if name not in left_out and not name.startswith("vae/")}
    assert names == {*wanted, "vae/config.json", "vae/diffusion_pytorch_model.bin", MANIFEST}
    assert (folder / UNET).read_bytes() == (repositories[CHECKPOINT] / UNET).read_bytes()
    assert listing.num_bytes == told[-1].bytes_done == told[-1].bytes_total
    assert [one.bytes_done for one in told] == sorted(one.bytes_done for one in told)
    assert len([one for one in told if one.file == UNET]) >= 3, "no progress within a file"
    assert listing.licences == {CHECKPOINT: "mit", VAE: "mit"}
    manifest = json.loads((folder / MANIFEST).read_text())
    assert manifest["commits"] == {CHECKPOINT: hub.commit(CHECKPOINT), VAE: hub.commit(VAE)}
    assert fetched(folder)
    assert [path.name for path in tmp_path.glob(".turbo*")] == [".turbo.lock"]


@pytest.mark.parametrize("listed", ["sdxl-turbo", "owner/xl"])
def test_of_xl_both_text_encoders_and_tokenizers_come(listed: str) -> None:
    """Also of any repository that has them; of one that has not, what there is."""
    repository = model_named(listed).repositories[0]
    both = ["text_encoder", "text_encoder_2"]
    names = [
        "model_index.json",
        "unet/config.json",
        UNET,
        *(f"{part}/{name}" for part in both for name in ("config.json", "model.fp16.safetensors")),
        *(f"{part.replace('text_encoder', 'tokenizer')}/merges.txt" for part in both),
        "scheduler/scheduler_config.json",
        "vae/config.json",
        "vae/diffusion_pytorch_model.safetensors",
    ]
    wanted = set(wanted_files(names, repository).values())
    assert {f"{part}/model.fp16.safetensors" for part in both} < wanted
    assert {"tokenizer/merges.txt", "tokenizer_2/merges.txt"} < wanted
    of_one = set(wanted_files([name for name in names if "_2/" not in name], repository).values())
    assert of_one == {name for name in wanted if "_2/" not in name}


def test_a_fetched_model_needs_no_hub(hub: Hub, tmp_path: Path) -> None:
    folder = fetch(MODEL, tmp_path / "turbo", endpoint=hub.endpoint)
    assert fetch(MODEL, folder, endpoint="http://127.0.0.1:9") == folder
    (folder / UNET).write_bytes(b"short")
    assert not fetched(folder)
    fetch(MODEL, folder, endpoint=hub.endpoint)
    assert fetched(folder)


def test_a_broken_connection_is_resumed_where_it_broke(
    hub: Hub, repositories: dict[str, Path], tmp_path: Path
) -> None:
    hub.cuts[UNET] = [1_200_000, 0, 700_000]
    told: list[Progress] = []
    folder = fetch(MODEL, tmp_path / "turbo", told.append, endpoint=hub.endpoint)
    assert (folder / UNET).read_bytes() == (repositories[CHECKPOINT] / UNET).read_bytes()
    starts = [start for name, start in hub.ranges if name == UNET]
    assert len(starts) == 4
    assert starts == sorted(starts)
    assert starts[1] > 0, "it began anew"
    assert told[-1].bytes_done == told[-1].bytes_total


def test_a_later_call_goes_on_where_a_broken_one_stopped(hub: Hub, tmp_path: Path) -> None:
    hub.cuts[UNET] = [1_500_000, *[0] * fetch_module.ATTEMPTS]
    with pytest.raises(FetchFailed) as failed:
        fetch(MODEL, tmp_path / "turbo", endpoint=hub.endpoint)
    assert reason_of(failed) is FetchReason.INTERRUPTED
    assert not (tmp_path / "turbo").exists()
    hub.ranges.clear()
    told: list[Progress] = []
    assert fetched(fetch(MODEL, tmp_path / "turbo", told.append, endpoint=hub.endpoint))
    assert [start > 1_000_000 for name, start in hub.ranges if name == UNET] == [True]
    assert told[-1].bytes_done == told[-1].bytes_total


def test_a_cancelled_fetch_ends_and_is_gone_on_with(hub: Hub, tmp_path: Path) -> None:
    cancel = threading.Event()

    def stop(progress: Progress) -> None:
        if progress.file == UNET and progress.bytes_done > 1_500_000:
            cancel.set()

    with pytest.raises(FetchFailed) as failed:
        fetch(MODEL, tmp_path / "turbo", stop, cancel, endpoint=hub.endpoint)
    assert reason_of(failed) is FetchReason.CANCELLED
    assert not (tmp_path / "turbo").exists()
    hub.ranges.clear()
    fetch(MODEL, tmp_path / "turbo", endpoint=hub.endpoint)
    assert all(start for name, start in hub.ranges if name == UNET)


@pytest.mark.parametrize("name", [UNET, "tokenizer/vocab.json"])
def test_a_file_with_another_digest_is_refused_and_leaves_nothing(
    hub: Hub, tmp_path: Path, name: str
) -> None:
    hub.damaged.add(name)
    with pytest.raises(FetchFailed, match=name) as failed:
        fetch(MODEL, tmp_path / "turbo", endpoint=hub.endpoint)
    assert reason_of(failed) is FetchReason.CHECKSUM
    assert not (tmp_path / "turbo").exists()
    assert not list(tmp_path.rglob("*.partial"))
    hub.damaged.clear()
    assert fetched(fetch(MODEL, tmp_path / "turbo", endpoint=hub.endpoint))


def test_a_full_disk_is_told_before_anything_is_loaded(
    hub: Hub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    usage = shutil.disk_usage(tmp_path)._replace(free=fetch_module.SPARE_BYTES + 1_000_000)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage)
    with pytest.raises(FetchFailed, match="68 MB free") as failed:
        fetch(MODEL, tmp_path / "turbo", endpoint=hub.endpoint)
    assert reason_of(failed) is FetchReason.NO_SPACE
    assert hub.ranges == []


def test_a_disk_that_fills_up_on_the_way_is_told_as_such(
    hub: Hub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: object) -> bool:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(fetch_module, "matches", full)
    with pytest.raises(FetchFailed) as failed:
        fetch(MODEL, tmp_path / "turbo", endpoint=hub.endpoint)
    assert reason_of(failed) is FetchReason.NO_SPACE


def test_a_folder_that_cannot_be_written_is_refused(hub: Hub, tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"")
    with pytest.raises(FetchFailed) as failed:
        fetch(MODEL, tmp_path / "file" / "turbo", endpoint=hub.endpoint)
    assert reason_of(failed) is FetchReason.NOT_WRITABLE


def test_a_folder_with_something_else_in_it_is_left_alone(hub: Hub, tmp_path: Path) -> None:
    (tmp_path / "turbo").mkdir()
    (tmp_path / "turbo" / "thesis.txt").write_text("dear")
    with pytest.raises(FetchFailed, match="holds something else") as failed:
        fetch(MODEL, tmp_path / "turbo", endpoint=hub.endpoint)
    assert reason_of(failed) is FetchReason.NOT_WRITABLE
    assert (tmp_path / "turbo" / "thesis.txt").read_text() == "dear"
    assert hub.ranges == []


def test_what_the_caller_raises_ends_the_fetch_as_it_is(hub: Hub, tmp_path: Path) -> None:
    class Enough(Exception):
        pass

    def stop(progress: Progress) -> None:
        if progress.file == UNET and progress.bytes_done > 1_500_000:
            raise Enough

    with pytest.raises(Enough):
        fetch(MODEL, tmp_path / "turbo", stop, endpoint=hub.endpoint)
    assert [name for name, _ in hub.ranges].count(UNET) == 1, "it was taken for a broken connection"


def test_a_repository_that_is_not_there_is_refused(hub: Hub, tmp_path: Path) -> None:
    with pytest.raises(FetchFailed, match="studio/none") as failed:
        fetch(model_of_hub_id("studio/none"), tmp_path / "none", endpoint=hub.endpoint)
    assert reason_of(failed) is FetchReason.NOT_FOUND
    hub.hidden.add(UNET)
    with pytest.raises(FetchFailed, match=UNET) as failed:
        fetch(MODEL, tmp_path / "turbo", endpoint=hub.endpoint)
    assert reason_of(failed) is FetchReason.NOT_FOUND


def test_a_repository_behind_a_form_is_refused(hub: Hub, tmp_path: Path) -> None:
    hub.gated.add(CHECKPOINT)
    with pytest.raises(FetchFailed, match=CHECKPOINT) as failed:
        fetch(MODEL, tmp_path / "turbo", endpoint=hub.endpoint)
    assert reason_of(failed) is FetchReason.GATED


def test_a_repository_of_something_else_is_refused(hub: Hub, tmp_path: Path) -> None:
    with pytest.raises(FetchFailed, match=f"{VAE} has no settings of a unet") as failed:
        fetch(model_of_hub_id(VAE), tmp_path / "vae", endpoint=hub.endpoint)
    assert reason_of(failed) is FetchReason.INCOMPLETE


def test_a_hub_that_cannot_be_reached_is_told_as_such(tmp_path: Path, hub: Hub) -> None:
    with pytest.raises(FetchFailed) as failed:
        fetch(MODEL, tmp_path / "turbo", endpoint="http://127.0.0.1:9")
    assert reason_of(failed) is FetchReason.OFFLINE


def test_without_a_hub_its_cache_does(hub: Hub, repositories: dict[str, Path], tmp_path: Path) -> None:
    """What other programs have fetched into the hub's cache is taken from there."""
    for hub_id, source in repositories.items():
        cached = tmp_path / "cache" / f"models--{hub_id.replace('/', '--')}"
        shutil.copytree(source, cached / "snapshots" / hub.commit(hub_id))
        (cached / "refs").mkdir()
        (cached / "refs" / "main").write_text(hub.commit(hub_id))
    folder = fetch(MODEL, tmp_path / "turbo", endpoint="http://127.0.0.1:9")
    assert (folder / UNET).read_bytes() == (repositories[CHECKPOINT] / UNET).read_bytes()
    assert fetched(folder)
    fetch(MODEL, tmp_path / "again", endpoint=hub.endpoint)
    assert hub.ranges == [], "what is cached was fetched again"


def test_what_is_damaged_in_its_cache_is_fetched_from_the_hub(
    hub: Hub, repositories: dict[str, Path], tmp_path: Path
) -> None:
    cached = tmp_path / "cache" / f"models--{CHECKPOINT.replace('/', '--')}"
    snapshot = cached / "snapshots" / hub.commit(CHECKPOINT)
    shutil.copytree(repositories[CHECKPOINT], snapshot)
    (snapshot / UNET).write_bytes(bytes(FILES[CHECKPOINT][UNET]))
    folder = fetch(MODEL, tmp_path / "turbo", endpoint=hub.endpoint)
    assert (folder / UNET).read_bytes() == (repositories[CHECKPOINT] / UNET).read_bytes()
    assert {name for name, _ in hub.ranges if name in FILES[CHECKPOINT]} == {UNET}


def test_what_another_process_has_fetched_meanwhile_is_not_fetched_again(
    hub: Hub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = fetch(MODEL, tmp_path / "turbo", endpoint=hub.endpoint)
    hub.ranges.clear()
    looks = iter([False])
    monkeypatch.setattr(fetch_module, "fetched", lambda folder: next(looks, None) is None and fetched(folder))
    assert fetch(MODEL, folder, endpoint=hub.endpoint) == folder
    assert hub.ranges == []
    assert [path.name for path in tmp_path.glob(".turbo*")] == [".turbo.lock"]


def test_one_process_at_a_time_fetches_into_a_folder(hub: Hub, tmp_path: Path) -> None:
    refused: list[FetchReason] = []

    def meanwhile(progress: Progress) -> None:
        if not refused:
            with pytest.raises(FetchFailed) as failed:
                fetch(MODEL, tmp_path / "turbo", endpoint=hub.endpoint)
            refused.append(reason_of(failed))

    assert fetched(fetch(MODEL, tmp_path / "turbo", meanwhile, endpoint=hub.endpoint))
    assert refused == [FetchReason.BUSY]
