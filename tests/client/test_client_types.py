"""What both clients for JavaScript have is of the same type in both, by TypeScript's own judgement."""

from __future__ import annotations

import re
import shutil
import subprocess
from collections.abc import Mapping
from pathlib import Path

import pytest
from support.require import skip_or_fail

pytestmark = [pytest.mark.integration, pytest.mark.timeout(240)]

TYPESCRIPT = "typescript@7.0.2"
IN_PART: Mapping[str, frozenset[str]] = {
    "Options": frozenset({"token"}),  # A page without one is the studio's own, and may say so.
    "Opened": frozenset({"method"}),  # JSON has null where a message has no field.
    "RearviewError": frozenset(),
    "Session": frozenset({"opened", "send", "close"}),
}
"""Types that have more in one client than in the other, and what differs though both have it."""
PREAMBLE = """\
import type * as Web from "./web.js";
import type * as Node from "./node.js";
type Same<A, B> = (<T>() => T extends A ? 1 : 2) extends <T>() => T extends B ? 1 : 2 ? true : false;
type Holds<Condition extends true> = Condition;
type Both<A, B, But> = Exclude<keyof A & keyof B, But>;
type Noticed<E> = { [Name in keyof E]: E[Name] extends Web.Notice ? Name : never }[keyof E];
type Notices = Extract<Node.Answer, { kind: "notice" }>["notice"];
"""


def names_of(types: str) -> set[str]:
    return set(re.findall(r"^export (?:interface|type|class) (\w+)", types, flags=re.MULTILINE))


def claims(web: str, node: str) -> dict[str, str]:
    """What has to hold, by its name: a condition in TypeScript each."""
    common = names_of(web) & names_of(node)
    assert common >= IN_PART.keys()
    found = {name: f"Same<Web.{name}, Node.{name}>" for name in common - IN_PART.keys()}
    for name, differing in IN_PART.items():
        but = " | ".join(f'"{each}"' for each in sorted(differing)) or "never"
        keys = f"Both<Web.{name}, Node.{name}, {but}>"
        found[name] = f"Same<Pick<Web.{name}, {keys}>, Pick<Node.{name}, {keys}>>"
        for each in differing:
            same = f'Same<Web.{name}["{each}"], Node.{name}["{each}"]>'
            found[f"{name}.{each} differs"] = f"{same} extends false ? true : false"
    return {**found, "the names of notices": "Same<Noticed<Web.Events>, Notices>"}


def broken(folder: Path, web: str, node: str) -> set[str]:
    """The names of claims that do not hold."""
    if shutil.which("npx") is None:
        skip_or_fail("npx is missing")
    found = list(claims(web, node).items())
    lines = [f"export type Claim{number} = Holds<{claim}>;" for number, (_, claim) in enumerate(found)]
    texts = {"web.d.ts": web, "node.d.ts": node, "same.ts": PREAMBLE + "\n".join(lines)}
    for name, text in texts.items():
        (folder / name).write_text(text, encoding="utf-8")
    command = ["npx", "--yes", "-p", TYPESCRIPT, "tsc", "--noEmit", "--strict", "--module", "es2022"]
    how = ["--moduleResolution", "bundler", "--target", "es2022", "--lib", "es2023,dom", "--types", ""]
    run = subprocess.run([*command, *how, "same.ts"], cwd=folder, capture_output=True, text=True, timeout=110)
    complaints = re.findall(r"^(\S+)\((\d+),\d+\): (.*)$", run.stdout, flags=re.MULTILINE)
    assert (run.returncode == 0) == (complaints == []), run.stdout + run.stderr
    first = PREAMBLE.count("\n") + 1
    for file, line, text in complaints:
        assert file == "same.ts", run.stdout
        assert int(line) >= first, run.stdout
        assert "does not satisfy the constraint 'true'" in text
    return {found[int(line) - first][0] for _, line, _ in complaints}


def test_what_both_clients_have_is_of_the_same_type_and_a_breach_is_seen(root: Path, tmp_path: Path) -> None:
    web, node = (
        (root / f"clients/{name}/index.d.ts").read_text(encoding="utf-8") for name in ("web", "node")
    )
    assert claims(web, node).keys() >= {"Settings", "FeatureBank", "TemporalCache", "Continuity"}
    assert broken(tmp_path, web, node) == set()
    planted = node
    for line, breach in {
        "  seed?: number;": "  seed?: string;",
        '"exact" | "approximate" | "reset"': '"exact" | "approximate" | "lost"',
        "  readonly retryAfterS?: number;": "  readonly retryAfterS: number;",
        '"drain" | "moved"': '"drained" | "moved"',
        "  method?: string;": "  method: string | null;",
    }.items():
        assert planted.count(line) == 1
        planted = planted.replace(line, breach)
    names = {"Settings", "Continuity", "Options", "Opened", "RearviewError"}
    assert broken(tmp_path, web, planted) == {*names, "Opened.method differs", "the names of notices"}
