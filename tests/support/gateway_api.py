"""What the Gateway API (v1) says of the fields that our Gateway and its route use; any other is refused.

Written from its reference, since its CRDs are in no registry that CI reads: it finds a field that is misspelt
or in the wrong place, and knows nothing of fields that we do not use.
"""

from __future__ import annotations

from typing import Any

import jsonschema

__all__ = ["gateway_problems"]


def _closed(required: tuple[str, ...] = (), /, **properties: Any) -> dict[str, Any]:
    return {
        "type": "object",
        "properties": properties,
        "required": list(required),
        "additionalProperties": False,
    }


def _each(items: dict[str, Any]) -> dict[str, Any]:
    return {"type": "array", "items": items, "minItems": 1, "maxItems": 64}


TEXT = {"type": "string", "minLength": 1, "maxLength": 253}
HOST = {"type": "string", "pattern": r"^(\*\.)?[a-z0-9]([-a-z0-9.]*[a-z0-9])?$"}
PORT = {"type": "integer", "minimum": 1, "maximum": 65535}
TLS = _closed(
    mode={"enum": ["Terminate", "Passthrough"]},
    certificateRefs=_each(_closed(("name",), group={"type": "string"}, kind=TEXT, name=TEXT, namespace=TEXT)),
)
LISTENER = _closed(
    ("name", "port", "protocol"),
    name=TEXT,
    hostname=HOST,
    port=PORT,
    protocol={"enum": ["HTTP", "HTTPS", "TLS", "TCP", "UDP"]},
    tls=TLS,
    allowedRoutes=_closed(
        namespaces=_closed(**{"from": {"enum": ["All", "Selector", "Same"]}}),
        kinds=_each(_closed(("kind",), group={"type": "string"}, kind=TEXT)),
    ),
)
METHOD = _closed(type={"enum": ["Exact", "RegularExpression"]}, service=TEXT, method=TEXT)
RULE = _closed(
    matches=_each(_closed(method=METHOD)),
    backendRefs=_each(_closed(("name",), name=TEXT, port=PORT, weight={"type": "integer", "minimum": 0})),
)
SPECS = {
    "Gateway": _closed(("gatewayClassName", "listeners"), gatewayClassName=TEXT, listeners=_each(LISTENER)),
    "GRPCRoute": _closed(
        parentRefs=_each(_closed(("name",), name=TEXT, namespace=TEXT, sectionName=TEXT, port=PORT)),
        hostnames=_each(HOST),
        rules=_each(RULE),
    ),
}


def gateway_problems(manifest: dict[str, Any]) -> list[str]:
    """What is wrong with a Gateway or a GRPCRoute, with paths; empty if nothing is."""
    metadata = {"type": "object", "required": ["name"]}
    api = {"const": "gateway.networking.k8s.io/v1"}
    schema = _closed(
        ("apiVersion", "kind", "metadata", "spec"),
        apiVersion=api,
        kind={"const": manifest["kind"]},
        metadata=metadata,
        spec=SPECS[manifest["kind"]],
    )
    found = jsonschema.Draft7Validator(schema).iter_errors(manifest)
    return [f"{'/'.join(map(str, error.absolute_path))}: {error.message}" for error in found]
