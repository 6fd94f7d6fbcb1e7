"""Whether command lines that a document shows are ours: their commands, options and kinds of values."""

from __future__ import annotations

import re
import shlex
import tomllib
from collections.abc import Iterator, Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from rearview.cli.main import app
from typer.main import get_command

__all__ = ["check_command", "check_shell", "commands_of"]

ROOT = Path(__file__).resolve().parents[2]
_BETWEEN = re.compile(r"[&|;]+")
_VARIABLE = re.compile(r"[A-Za-z_]\w*=")


def check_command(words: Sequence[str]) -> None:
    """`words`: what follows `rearview`. Raises LookupError for a command, an option or an argument that is
    not there, for a value that an option does not take, and for an argument that is missing.
    """
    command: Any = get_command(app)
    context, left = command.context_class(command, info_name="rearview"), list(words)
    if words and words[0] in {name for each in command.get_params(context) for name in each.opts}:
        left = left[1:]
        if not left:
            return
    while hasattr(command, "get_command"):
        found = command.get_command(context, left[0]) if left else None
        if found is None:
            raise LookupError(f"no such command: {' '.join(words)}")
        context = found.context_class(found, parent=context, info_name=left.pop(0))
        command = found
    if words[0] == "eval":
        command = _evaluation()
        context = command.context_class(command, info_name="eval")
    try:
        values, extra, _ = command.make_parser(context).parse_args(left)
        for each in command.params:
            if values.get(each.name) is not None and not each.is_eager:
                each.process_value(context, values[each.name])
    except Exception as error:  # A usage error of whichever click typer has.
        raise LookupError(f"{' '.join(words)}: {error}") from error
    if extra and not context.allow_extra_args:
        raise LookupError(f"no such argument: {extra} in {' '.join(words)}")
    arguments = [each for each in command.params if each.param_type_name == "argument"]
    if missing := [each.name for each in arguments if each.required and not values.get(each.name)]:
        raise LookupError(f"missing: {missing} in {' '.join(words)}")


def check_shell(text: str, *, is_foreign_known: bool = False) -> None:
    """A block of commands. Raises LookupError for one of ours that is not there, and for another program's,
    unless those are known to be needed (`is_foreign_known`).
    """
    for words in commands_of(text):
        name, *arguments = words
        if Path(name).name == "rearview":
            check_command(arguments)
        elif name == "make":
            _check_targets(arguments)
        elif Path(name).name == "python" and arguments[:1] == ["-m"]:
            _check_module(arguments[1])
        elif name == "pip" and arguments[:1] == ["install"]:
            _check_extras(arguments[1:])
        elif not is_foreign_known:
            raise LookupError(f"{name}: another program, so say `<!-- needs: … -->` before the block")


def commands_of(text: str) -> Iterator[list[str]]:
    """The words of each command of a block, without comments, variables before it and where it writes to."""
    for line in text.replace("\\\n", " ").splitlines():
        lexer = shlex.shlex(line, posix=True, punctuation_chars="&|;")
        lexer.whitespace_split = True
        found: list[str] = []
        for word in [*lexer, ";"]:
            if not _BETWEEN.fullmatch(word):
                if found or not _VARIABLE.match(word):
                    found.append(word)
            elif found:
                yield found
                found = []


def _evaluation() -> Any:
    """The laboratory's own command, to which `rearview eval` gives its options unread."""
    from rearview_lab.evaluation.command import app as laboratory

    return get_command(laboratory)


def _check_targets(arguments: Sequence[str]) -> None:
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    for target in (one for one in arguments if "=" not in one):
        if not re.search(rf"^{re.escape(target)}:(?!=)", makefile, re.MULTILINE):
            raise LookupError(f"no such target: make {target}")


def _check_module(name: str) -> None:
    try:
        is_there = find_spec(name) is not None
    except ModuleNotFoundError:
        is_there = False
    if not is_there:
        raise LookupError(f"no such module: {name}")


def _check_extras(wanted: Sequence[str]) -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    for one in wanted:
        found = re.fullmatch(r"rearview\[(.+)\]", one)
        if found is None or not set(found[1].split(",")) <= set(project["optional-dependencies"]):
            raise LookupError(f"no such package: pip install {one}")
