"""An OTLP payload as text for people: one line for each fact and each data point, with nothing left out."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

KINDS = ("gauge", "sum", "exponentialHistogram")


def rendered(content: Mapping[str, Any]) -> str:
    """Return every value of a payload in OTLP JSON as text.

    Args:
        content: an ``ExportMetricsServiceRequest``.
    """
    return "\n".join(line for resource in content.get("resourceMetrics", ()) for line in _lines(resource))


def _lines(resource: Mapping[str, Any]) -> Iterator[str]:
    yield f"schema: {resource.get('schemaUrl', '')}"
    for name, value in _pairs(resource["resource"].get("attributes", ())):
        yield f"{name} = {value}"
    for scope in resource["scopeMetrics"]:
        yield f"scope: {scope['scope']['name']}  {scope.get('schemaUrl', '')}"
        for metric in scope["metrics"]:
            kind = next(kind for kind in KINDS if kind in metric)
            yield f"{metric['name']}  [{metric['unit']}]  {_described(kind, metric[kind])}  {metric['description']}"
            for point in metric[kind]["dataPoints"]:
                yield f"  {_point(point)}"


def _described(kind: str, data: Mapping[str, Any]) -> str:
    details = [f"{key} {json.dumps(value)}" for key, value in data.items() if key != "dataPoints"]
    return ", ".join((kind, *details))


def _point(point: Mapping[str, Any]) -> str:
    attributes = ", ".join(f"{name} = {value}" for name, value in _pairs(point.get("attributes", ())))
    values = [f"{key} {_plain(value)}" for key, value in point.items() if key != "attributes"]
    return f"{{{attributes}}}  {', '.join(values)}"


def _pairs(attributes: Iterable[Mapping[str, Any]]) -> Iterator[tuple[str, str]]:
    for entry in attributes:
        ((_, value),) = entry["value"].items()
        yield entry["key"], json.dumps(value)


def _plain(value: Any) -> str:
    if isinstance(value, Mapping):  # the buckets of a histogram
        return f"({', '.join(f'{key} {_plain(inner)}' for key, inner in value.items())})"
    return "[" + " ".join(map(str, value)) + "]" if isinstance(value, list) else str(value)
