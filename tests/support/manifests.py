"""What an API server and Ray Serve would say of our manifests, without either."""

from __future__ import annotations

import functools
import shutil
import subprocess
import typing
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import jsonschema
import kubernetes_validate
import yaml
from pydantic import BaseModel
from ray.serve.schema import ServeDeploySchema

__all__ = ["CustomResources", "Manifest", "check_core", "kubectl", "pick", "render", "serve_problems"]

Manifest = dict[str, Any]
_OPEN = "x-kubernetes-preserve-unknown-fields"


def kubectl() -> str | None:
    """Path of kubectl, or None."""
    return shutil.which("kubectl")


@functools.cache
def _rendered(folder: Path) -> str:
    command = [kubectl() or "kubectl", "kustomize", str(folder)]
    run = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    if run.returncode:
        raise AssertionError(run.stderr)
    return run.stdout


def render(folder: Path) -> list[Manifest]:
    """The objects of a Kustomize folder. Raises AssertionError with kubectl's words."""
    return [document for document in yaml.safe_load_all(_rendered(folder)) if document]


def pick(objects: list[Manifest], kind: str) -> list[Manifest]:
    """The objects of one kind."""
    return [item for item in objects if item["kind"] == kind]


def check_core(manifest: Manifest) -> None:
    """Check an object of Kubernetes' own kinds. Raises ValidationError; a kind without schema too."""
    kubernetes_validate.validate(manifest, "1.31", strict=True)


class CustomResources:
    """The kinds of a folder of CRDs, read as strictly as an API server that refuses unknown fields."""

    def __init__(self, folder: Path) -> None:
        self._validators: dict[tuple[str, str], jsonschema.Draft7Validator] = {}
        for path in sorted(folder.rglob("*.yaml")):
            crd = yaml.load(path.read_text(encoding="utf-8"), yaml.CSafeLoader)
            for version in crd["spec"]["versions"]:
                api = f"{crd['spec']['group']}/{version['name']}"
                schema = _closed(version["schema"]["openAPIV3Schema"], root=True)
                self._validators[api, crd["spec"]["names"]["kind"]] = jsonschema.Draft7Validator(schema)

    def knows(self, manifest: Manifest) -> bool:
        """Whether there is a schema for its kind in its version."""
        return (manifest["apiVersion"], manifest["kind"]) in self._validators

    def problems(self, manifest: Manifest) -> list[str]:
        """What is wrong with it, with paths; empty if nothing is."""
        validator = self._validators[manifest["apiVersion"], manifest["kind"]]
        return [
            f"{'/'.join(map(str, error.absolute_path))}: {error.message}"
            for error in validator.iter_errors(manifest)
        ]


def _closed(schema: Mapping[str, Any], *, root: bool = False) -> dict[str, Any]:
    """JSON schema of an OpenAPI schema in which a field that the server would prune is an error."""
    if schema.get("x-kubernetes-int-or-string"):
        return {"anyOf": [{"type": "integer"}, {"type": "string"}]}
    out = {key: value for key, value in schema.items() if key not in ("properties", "items")}
    if "properties" in schema:
        out["properties"] = {name: _closed(part) for name, part in schema["properties"].items()}
        if root:
            out["properties"]["metadata"] = {"type": "object", "required": ["name"]}
    if schema.get("type") == "object" and not schema.get(_OPEN):
        out.setdefault("additionalProperties", False)
    if "items" in schema:
        out["items"] = _closed(schema["items"])
    if isinstance(schema.get("additionalProperties"), Mapping):
        out["additionalProperties"] = _closed(schema["additionalProperties"])
    if schema.get("nullable") and "type" in schema:
        out["type"] = [schema["type"], "null"]
    return out


def serve_problems(content: Mapping[str, Any]) -> list[str]:
    """What Ray Serve's own model refuses, and the keys that it would ignore in silence."""
    ServeDeploySchema.model_validate(dict(content))
    return list(_unknown(ServeDeploySchema, content, ""))


def _unknown(model: type[BaseModel], content: Mapping[str, Any], where: str) -> Iterator[str]:
    for key, value in content.items():
        field = model.model_fields.get(key)
        if field is None:
            yield f"{where}{key}: no such key in {model.__name__}"
            continue
        parts = value if isinstance(value, list) else [value]
        for inner in _models(field.annotation):
            for part in parts:
                if isinstance(part, Mapping):
                    yield from _unknown(inner, part, f"{where}{key}.")


def _models(annotation: Any) -> Iterator[type[BaseModel]]:
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        yield annotation
    for argument in typing.get_args(annotation):
        yield from _models(argument)
