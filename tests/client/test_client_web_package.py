"""The web client's package: what is in it, and what its types say."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
from dataclasses import fields
from pathlib import Path

import pytest
from rearview.contract.opening import OpenRequest
from rearview.contract.settings import SettingsChange
from rearview.studio.spoken import UNSPOKEN
from support.web_package import packed

pytestmark = [pytest.mark.integration, pytest.mark.timeout(240)]

TYPESCRIPT = "typescript@7.0.2"


@pytest.fixture(scope="module")
def package(root: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return packed(root, tmp_path_factory.mktemp("web"))


USE = """
import { connect, RearviewError, type Applied, type Notice } from "@rearview/web";

export async function run(camera: MediaStream, video: HTMLVideoElement): Promise<Applied> {
  const session = await connect(camera, {
    url: "https://studio.example",
    token: async () => "one",
    dropPolicy: "latest",
    settings: { prompt: "a", guidance: "self" },
    onended: ({ reason }) => console.log(reason),
  });
  const moved = ({ detail }: CustomEvent<Notice>) => console.log(detail.continuity);
  session.addEventListener("moved", moved);
  session.removeEventListener("moved", moved);
  video.srcObject = session.stream;
  return session.change({ controls: [{ name: "edges", weight: 0.5 }] });
}
export const isLater = (error: RearviewError): boolean => (error.retryAfterS ?? 0) > 0;
"""


def check_types(folder: Path, name: str, text: str) -> subprocess.CompletedProcess[str]:
    (folder / name).write_text(text, encoding="utf-8")
    command = ["npx", "--yes", "-p", TYPESCRIPT, "tsc", "--noEmit", "--strict", "--module", "nodenext"]
    how = ["--target", "es2022", "--lib", "es2023,dom", "--types", "", name]
    return subprocess.run([*command, *how], cwd=folder, capture_output=True, text=True, timeout=110)


def test_its_types_take_what_it_takes_and_nothing_else(package: Path, tmp_path: Path) -> None:
    (tmp_path / "node_modules/@rearview").mkdir(parents=True)
    shutil.copytree(package, tmp_path / "node_modules/@rearview/web")
    (tmp_path / "package.json").write_text('{"type": "module"}', encoding="utf-8")
    run = check_types(tmp_path, "use.ts", USE)
    assert run.returncode == 0, run.stdout + run.stderr
    run = check_types(
        tmp_path, "breach.ts", USE.replace('"latest"', '"never"').replace("guidance:", "guide:")
    )
    assert '"never"' in run.stdout
    assert "guide" in run.stdout


def test_the_package_is_what_it_says(root: Path, package: Path) -> None:
    about = json.loads((package / "package.json").read_text(encoding="utf-8"))
    assert (about["license"], about.get("dependencies")) == ("Apache-2.0", None)
    for path in about["exports"]["."].values():
        assert (package / path).is_file()
    assert {path.name for path in package.iterdir()} == {"package.json", "README.md", "index.d.ts", "src"}
    names = (root / "clients/web/src/names.js").read_text(encoding="utf-8")
    for kind, own in ((SettingsChange, "SETTINGS"), (OpenRequest, "OPTIONS")):
        (listed,) = re.findall(rf"export const {own} = \[(.*?)\];", names, flags=re.DOTALL)
        spoken = {
            re.sub("[A-Z]", lambda at: f"_{at[0].lower()}", name) for name in re.findall(r'"(\w+)"', listed)
        }
        assert spoken == {one.name for one in fields(kind)} - UNSPOKEN - {"settings"}, own
