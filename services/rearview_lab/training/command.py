"""`rearview train pocket`: its options, and which part of the work they ask for.

torch is imported only once they have been read, so that `--help` is quick.
"""

from __future__ import annotations

import argparse
import os
from collections.abc import Sequence
from pathlib import Path

from rearview_lab.training.options import Options

__all__ = ["main"]

DESCRIPTION = (
    """Make the pocket checkpoint within the minutes given, resuming where an earlier run stopped."""
)


def main(arguments: Sequence[str] | None = None, *, prog: str | None = None) -> None:
    """Every option of `Options`, plus `--random` and `--finish-only`."""
    parser = argparse.ArgumentParser(prog=prog, description=DESCRIPTION)
    for name, value in vars(Options()).items():
        kind = Path if isinstance(value, Path) else type(value)
        parser.add_argument(f"--{name.replace('_', '-')}", type=kind, default=value)
    parser.add_argument("--random", action="store_true", help="export untrained weights and stop")
    parser.add_argument("--finish-only", action="store_true", help="measure the exported checkpoint and stop")
    chosen = vars(parser.parse_args(arguments))
    random, finish_only = chosen.pop("random"), chosen.pop("finish_only")
    options = Options(**chosen)
    if options.notes and not Path(options.notes).is_file():
        raise FileNotFoundError(f"{options.notes}: no such file")
    if options.start_from:
        _check_start(Path(options.start_from), options.checkpoint)
    os.environ.setdefault("HF_HUB_OFFLINE", "1")
    from rearview_lab.training.export import random_pocket, write_checkpoint
    from rearview_lab.training.pocket import finish, train_pocket

    if random:
        write_checkpoint(random_pocket(options.seed), options.checkpoint, training={"finished": False})
    elif finish_only:
        finish(options)
    else:
        train_pocket(options)


def _check_start(folder: Path, checkpoint: Path) -> None:
    if not (folder / "model_index.json").is_file():
        raise FileNotFoundError(f"{folder}: no checkpoint folder, there is no model_index.json")
    if folder.resolve() == checkpoint.resolve():
        raise ValueError(f"{folder} is replaced while training runs: start from a copy of it")
