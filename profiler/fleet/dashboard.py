"""A dashboard and alerts for Grafana over the fleet's views in ClickHouse: the questions' own SQL, of the last days.

`make docs` writes them to ``examples/pipeline/``.
"""

from __future__ import annotations

from typing import Any

from profiler.fleet.columns import filled
from profiler.fleet.questions import question

DAYS, ALERT_DAYS = 30, 7
KIND, NAME = "grafana-clickhouse-datasource", "${datasource}"
TABLE_FORMAT = 1
PANELS = (  # question, title, its place and size (x, y, width, height)
    ("trend", "Time of a sample, by week", (0, 0, 12, 9)),
    ("steps", "Duration of a step", (12, 0, 12, 9)),
    ("waste", "Hours by cause", (0, 9, 12, 9)),
    ("waiting", "How much runs wait for data", (12, 9, 12, 9)),
    ("stragglers", "Ranks that hold their job back", (0, 18, 12, 8)),
    ("slow-nodes", "Slow machines", (12, 18, 12, 8)),
    ("energy", "Energy of a sample", (0, 26, 12, 8)),
)
ALERTS = (
    ("stragglers", "A rank holds its job back", "All others wait for it: 'epochmeter fleet ask stragglers' names it."),
    ("slow-nodes", "A machine is slower than the others", "'epochmeter fleet ask slow-nodes' names it."),
)
UNITS = {"s_per_sample": "s", "p50_s": "s", "p90_s": "s", "p99_s": "s", "behind_s": "s", "lost_s": "s", "share": "percentunit"}


def dashboard() -> dict[str, Any]:
    """Return the dashboard, to be imported."""
    source = {"name": "datasource", "type": "datasource", "query": KIND, "label": "Data source"}
    return {
        "title": "Epochmeter: the fleet",
        "uid": "epochmeter-fleet",
        "tags": ["epochmeter"],
        "schemaVersion": 39,
        "version": 1,
        "editable": True,
        "timezone": "utc",
        "time": {"from": f"now-{DAYS}d", "to": "now"},
        "templating": {"list": [source]},
        "panels": [_panel(number, *panel) for number, panel in enumerate(PANELS, start=1)],
    }


def alerts() -> dict[str, Any]:
    """Return alert rules, to be provisioned; ``CLICKHOUSE`` stands for the data source's uid."""
    rules = [
        {
            "uid": f"epochmeter-{name}",
            "title": title,
            "condition": "B",
            "for": "0s",
            "noDataState": "OK",
            "execErrState": "Error",
            "labels": {"severity": "warning"},
            "annotations": {"summary": title, "description": text},
            "data": [
                {
                    "refId": "A",
                    "datasourceUid": "CLICKHOUSE",
                    "relativeTimeRange": {"from": ALERT_DAYS * 86_400, "to": 0},
                    "model": {"refId": "A", **_query(_counted(_sql(name, ALERT_DAYS)))},
                },
                {
                    "refId": "B",
                    "datasourceUid": "__expr__",
                    "relativeTimeRange": {"from": 0, "to": 0},
                    "model": {
                        "refId": "B",
                        "type": "threshold",
                        "expression": "A",
                        "conditions": [{"evaluator": {"type": "gt", "params": [0]}}],
                    },
                },
            ],
        }
        for name, title, text in ALERTS
    ]
    group = {"orgId": 1, "name": "epochmeter-fleet", "folder": "Epochmeter", "interval": "1h", "rules": rules}
    return {"apiVersion": 1, "groups": [group]}


def _panel(number: int, name: str, title: str, place: tuple[int, int, int, int]) -> dict[str, Any]:
    units = [
        {"matcher": {"id": "byName", "options": column}, "properties": [{"id": "unit", "value": unit}]}
        for column, unit in UNITS.items()
    ]
    source = {"type": KIND, "uid": NAME}
    return {
        "id": number,
        "type": "table",
        "title": title,
        "description": question(name).help,
        "datasource": source,
        "gridPos": dict(zip("xywh", place, strict=True)),
        "fieldConfig": {"defaults": {"custom": {}}, "overrides": units},
        "targets": [{"refId": "A", "datasource": source, **_query(_sql(name, DAYS))}],
    }


def _query(sql: str) -> dict[str, Any]:
    return {"editorType": "sql", "queryType": "table", "format": TABLE_FORMAT, "rawSql": sql}


def _sql(name: str, days: int) -> str:
    return filled(question(name).sql, {"SINCE": f"today() - {days}"})


def _counted(sql: str) -> str:
    return f"SELECT count(*) AS found FROM (\n{sql}\n)"  # noqa: S608  # a question of ours
