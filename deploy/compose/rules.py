"""The rules beside this file, made of Kubernetes': `python deploy/compose/rules.py`; a test compares."""

from __future__ import annotations

from pathlib import Path

import yaml

HERE = Path(__file__).resolve().parent
SOURCE = HERE.parents[1] / "k8s/base/prometheus-rule.yaml"


def text() -> str:
    """A rules file as Prometheus reads it."""
    groups = yaml.safe_load(SOURCE.read_text(encoding="utf-8"))["spec"]["groups"]
    content = yaml.safe_dump({"groups": groups}, sort_keys=False, width=1000)
    return (
        f"# Made by deploy/compose/rules.py of k8s/base/prometheus-rule.yaml; not edited by hand.\n{content}"
    )


if __name__ == "__main__":
    (HERE / "rules.yml").write_text(text(), encoding="utf-8")
