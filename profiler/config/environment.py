"""The environment: the only module that reads or writes environment variables."""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from profiler.config.schema import FALSE_WORDS, KEYS, ResolvedValue, check_value, mistyped
from profiler.errors import SettingsError

CI_VARIABLES = ("CI", "GITHUB_ACTIONS", "GITLAB_CI", "JENKINS_URL", "TF_BUILD", "BUILDKITE")
NOT_FOR_HOSTS = (  # if one of these is set, nothing goes to a destination that a package chose
    *(*CI_VARIABLES, "PYTEST_CURRENT_TEST", "PYTEST_VERSION", "TOX_ENV_NAME", "NOX_CURRENT_SESSION"),
    *("HF_HUB_OFFLINE", "TRANSFORMERS_OFFLINE", "HF_DATASETS_OFFLINE", "WANDB_MODE=offline"),
    "OTEL_METRICS_EXPORTER=none",
)
OWN = "EPOCHMETER_"
NO_SETTINGS = ("HOME", "RUN", "OTLP_HEADERS", "GA_API_SECRET")  # variables of ours, without the prefix, that are no settings
OTEL_ENDPOINTS = ("OTEL_EXPORTER_OTLP_ENDPOINT", "OTEL_EXPORTER_OTLP_METRICS_ENDPOINT")


def not_for_hosts() -> str:
    """Return the variable that bars destinations chosen by a package (CI, tests, offline), or ""."""
    for entry in NOT_FOR_HOSTS:
        name, _, wanted = entry.partition("=")
        value = os.environ.get(name, "").strip().lower()
        if value == wanted if wanted else value not in ("", *FALSE_WORDS):
            return name
    return ""


def values_from_environment(problems: list[str]) -> Iterator[tuple[str, ResolvedValue]]:
    """Yield the settings given in environment variables. One that cannot be used is a problem, and means "off"."""
    for key in KEYS:
        variable = f"EPOCHMETER_{key.upper()}"
        text = os.environ.get(variable)
        if not text:
            continue
        try:
            yield key, ResolvedValue(check_value(key, text), "environment", variable)
        except SettingsError as error:
            problems.append(f"{variable}: {error} Nothing is sent until it is mended.")
            yield "sync", ResolvedValue(False, "environment", variable)
    for name in list(os.environ):
        spelt = name.upper().replace("-", "_")
        if spelt == "DO_NOT_TRACK" and os.environ.get(name, "").strip().lower() not in ("", *FALSE_WORDS):
            yield "sync", ResolvedValue(False, "environment", name)
        elif spelt.startswith(OWN) and (fault := _mistyped(name)):
            problems.append(f"{name}: {fault} Nothing is sent until it is mended.")
            yield "sync", ResolvedValue(False, "environment", name)
    if os.environ.get("OTEL_SDK_DISABLED", "").strip().lower() == "true":
        yield "sync", ResolvedValue(False, "environment", "OTEL_SDK_DISABLED")


def _mistyped(name: str) -> str:
    """Return the fault of a variable that is no setting but looks like an "off", or ""."""
    key, value = name[len(OWN) :], os.environ.get(name, "")
    is_known = name.startswith(OWN) and (key in NO_SETTINGS or (key.isupper() and key.lower() in KEYS))
    return "" if is_known or not value.strip() else mistyped(key, value)


def names_set(names: Iterable[str]) -> set[str]:
    """Return those of these environment variables that exist. Their values are not read."""
    return {name for name in names if name in os.environ}


def choices() -> dict[str, str]:
    """Return the variables that choose settings, for another process of ours, without EPOCHMETER_HOME."""
    chosen = ("EPOCHMETER_", "OTEL_", "DO_NOT_TRACK")
    return {name: os.environ[name] for name in os.environ if name.startswith(chosen) and name != "EPOCHMETER_HOME"}


def without_choices() -> dict[str, str]:
    """Return the environment for a process without this one's settings."""
    return {name: value for name, value in os.environ.items() if name not in {*choices(), "EPOCHMETER_HOME"}}


def variables(names: Iterable[str]) -> dict[str, str]:
    """Return those of these environment variables that are set and not empty."""
    return {name: os.environ[name] for name in names if os.environ.get(name, "").strip()}


def variable(name: str) -> str | None:
    """Return one environment variable unchanged, because an empty one may differ from one that is not set."""
    return os.environ.get(name)


def environment_for_run(request: Mapping[str, Any]) -> dict[str, str]:
    """Return the environment for a script to measure: Python runs `startup.sitecustomize` before it."""
    before = os.environ.get("PYTHONPATH")
    startup = str(Path(__file__).parents[1] / "startup")
    return {
        **os.environ,
        "EPOCHMETER_RUN": json.dumps({**request, "pythonpath": before}),
        "PYTHONPATH": os.pathsep.join((startup, before)) if before else startup,
    }
