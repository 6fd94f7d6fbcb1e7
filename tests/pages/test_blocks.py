"""Every block of code of the documentation is run by a test or read by what would read it, or says what it
needs: `<!-- needs: a cluster -->` on the line before it.

Run are those of `RUN`, each by its test. Read are lines for a shell by the command line's own parser, YAML as
a deployment's configuration, JSON, and PromQL by promtool. `text` is what something prints, and drawings.
"""

from __future__ import annotations

import json
import shutil
import subprocess
from collections import Counter
from pathlib import Path
from tempfile import NamedTemporaryFile

import pytest
import yaml
from rearview.config import load_config
from rearview.errors import ConfigError
from support.commands import check_shell, commands_of
from support.pages import Fence, fences
from support.require import skip_or_fail

pytestmark = pytest.mark.unit

ENGINE, PYTHON, STUDIO, TUTORIALS = (
    "tests/pages/test_engine_page.py",
    "tests/pages/test_python_page.py",
    "tests/studio/test_browser_service.py",
    "tests/pages/test_tutorials.py",
)
RUN = {
    ("README.md", "python"): (1, PYTHON),
    ("clients/node/README.md", "js"): (1, "tests/client/test_client_node.py"),
    ("docs/cookbook.md", "python"): (3, TUTORIALS),
    ("docs/engine.md", "python"): (7, ENGINE),
    ("docs/first-style.md", "json"): (1, TUTORIALS),
    ("docs/first-style.md", "python"): (1, TUTORIALS),
    ("docs/first-style.md", "sh"): (5, TUTORIALS),
    ("docs/grpc.md", "sh"): (5, "tests/pages/test_grpc_page.py"),
    ("docs/python.md", "python"): (7, PYTHON),
    ("docs/web.md", "html"): (1, STUDIO),
    ("docs/web.md", "python"): (1, STUDIO),
    ("docs/webrtc.md", "html"): (1, STUDIO),
    ("docs/webrtc.md", "python"): (1, "tests/studio/test_webrtc.py"),
    ("docs/webrtc.md", "sh"): (2, "tests/studio/test_webrtc.py"),
}
"""Page and language: how many blocks, and the test that runs them."""
PAGES = ("README.md", "docs/**/*.md", "deploy/README.md", "k8s/README.md", "clients/*/README.md")


def pages(root: Path) -> dict[str, list[Fence]]:
    found = sorted({path for pattern in PAGES for path in root.glob(pattern)})
    return {
        path.relative_to(root).as_posix(): fences(path) for path in found if "node_modules" not in path.parts
    }


def read(fence: Fence) -> None:
    """Raises what the reader of its language raises, and LookupError where there is none."""
    match fence.language:
        case "text":
            pass
        case "sh":
            check_shell(fence.code, is_foreign_known=bool(fence.needs))
        case "yaml":
            load_config(yaml.safe_load(fence.code))
        case "json":
            json.loads(fence.code)
        case "promql":
            check_promql(fence.code)
        case language if fence.needs:
            assert language, f"{fence.where}: no language"
        case _:
            raise LookupError(
                f"{fence.where}: nothing runs or reads a block of {fence.language or 'no language'}"
            )


def check_promql(query: str) -> None:
    promtool = shutil.which("promtool")
    if promtool is None:
        skip_or_fail("promtool is missing")
    rules = {"groups": [{"name": "page", "rules": [{"record": "page:query", "expr": query}]}]}
    with NamedTemporaryFile("w", suffix=".yaml") as file:
        json.dump(rules, file)
        file.flush()
        command = [promtool, "check", "rules", file.name]
        ran = subprocess.run(command, capture_output=True, text=True, timeout=30, check=False)
    if ran.returncode:
        raise LookupError(ran.stderr)


def test_every_block_is_run_or_read_or_says_what_it_needs(root: Path) -> None:
    found = pages(root)
    assert sum(map(len, found.values())) > 60
    for page, blocks in found.items():
        for fence in blocks:
            if (page, fence.language) not in RUN:
                read(fence)
            elif fence.language == "sh":
                check_shell(fence.code, is_foreign_known=True)


def test_blocks_that_are_run_are_there_and_their_tests_know_the_page(root: Path) -> None:
    found = Counter((page, fence.language) for page, blocks in pages(root).items() for fence in blocks)
    assert {key: found[key] for key in RUN} == {key: number for key, (number, _) in RUN.items()}
    for (page, _), (_, test) in RUN.items():
        assert Path(page).name in (root / test).read_text(encoding="utf-8"), f"{test}: {page}"


def block(tmp_path: Path, text: str) -> Fence:
    path = tmp_path / "page.md"
    path.write_text(text, encoding="utf-8")
    (found,) = fences(path)
    return found


@pytest.mark.parametrize(
    "text",
    [
        "```\nrearview up\n```",
        "A paragraph.\n\n    rearview up\n",
        "```python\nprint(1)\n```",
        "```sh\nrearview upp\n```",
        "```sh\nrearview up --prot 1\n```",
        "```sh\nrearview up --port high\n```",
        "```sh\nrearview translate a.mp4 b.mp4 --prompt a --method streamv3v\n```",
        "```sh\ncd x && .venv/bin/rearview translate a.mp4 --prompt x\n```",
        "```sh\nmake nothing\n```",
        "```sh\npython -m loadtest.nothing\n```",
        "```sh\npip install 'rearview[nothing]'\n```",
        "```sh\nrearview eval --nothing\n```",
        "```sh\ndocker run x\n```",
        "<!-- needs: docker -->\n```sh\ndocker run x && rearview upp\n```",
        "<!-- needs: docker -->\n\nA paragraph.\n\n```sh\ndocker run x\n```",
        "<!-- needs: docker -->\n```\ndocker run x\n```",
        "```yaml\nmodle: {}\n```",
        "```yaml\na: [\n```",
        "```json\n{a: 1}\n```",
        "```promql\nsum(rate(x[5m])\n```",
    ],
)
def test_what_nothing_runs_or_reads_is_seen(tmp_path: Path, text: str) -> None:
    with pytest.raises((LookupError, ConfigError, ValueError, AssertionError, yaml.YAMLError)):
        read(block(tmp_path, text))


@pytest.mark.parametrize(
    "text",
    [
        "```sh\nA=b rearview up --port 0  # here\nmake demo STYLE=oil\n```",
        "```sh\nrearview translate a.mp4 b.mp4 \\\n  --prompt 'a; b'\n```",
        "<!-- needs: docker -->\n```sh\ndocker run x\n```",
        "<!-- needs: TouchDesigner -->\n```python\nop('x')\n```",
        "```yaml\nmodel: {width: 512}\n```",
        "```promql\nsum(rate(x[5m]))\n```",
    ],
)
def test_what_is_as_it_should_be_passes(tmp_path: Path, text: str) -> None:
    read(block(tmp_path, text))


def test_lines_are_taken_apart_as_a_shell_does() -> None:
    lines = "A=1 a 'b;c' && d | e # f\n# g\nh \\\n i\n"
    assert list(commands_of(lines)) == [["a", "b;c"], ["d"], ["e"], ["h", "i"]]
