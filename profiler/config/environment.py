"""The environment: the only module that reads or writes environment variables."""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from profiler.config.address import Parts
from profiler.config.schema import FALSE_WORDS, KEYS, TRUE_WORDS, ResolvedValue, check_value, mistyped
from profiler.errors import SettingsError

CI_VARIABLES = (
    *("CI", "GITHUB_ACTIONS", "GITLAB_CI", "JENKINS_URL", "HUDSON_URL", "TF_BUILD", "BUILDKITE", "TEAMCITY_VERSION"),
    *("CIRCLECI", "TRAVIS", "APPVEYOR", "CODEBUILD_BUILD_ID", "BITBUCKET_BUILD_NUMBER", "DRONE", "SEMAPHORE", "CIRRUS_CI"),
    *("bamboo_buildKey", "GO_PIPELINE_NAME", "KAGGLE_KERNEL_RUN_TYPE=batch"),
)
OTHERS_OFF = (  # the "off" of other tools, whose users expect it of all; "=false" stands for every such word
    *("HF_HUB_DISABLE_TELEMETRY", "DISABLE_TELEMETRY", "TELEMETRY_DISABLED", "NO_TELEMETRY", "MLFLOW_DISABLE_TELEMETRY"),
    *("ANONYMIZED_TELEMETRY=false", "VLLM_NO_USAGE_STATS", "VLLM_DO_NOT_TRACK", "RAY_USAGE_STATS_ENABLED=false"),
    *("GRADIO_ANALYTICS_ENABLED=false", "STREAMLIT_BROWSER_GATHER_USAGE_STATS=false", "SCARF_NO_ANALYTICS"),
    *("SCARF_ANALYTICS=false", "HOMEBREW_NO_ANALYTICS", "DOTNET_CLI_TELEMETRY_OPTOUT", "NEXT_TELEMETRY_DISABLED"),
    *("WANDB_MODE=disabled", "WANDB_MODE=offline", "WANDB_MODE=dryrun", "WANDB_DISABLED", "COMET_MODE=disabled"),
)
NOT_FOR_HOSTS = (  # if one of these is set, nothing goes to a destination that a package chose
    *(*CI_VARIABLES, "PYTEST_CURRENT_TEST", "PYTEST_VERSION", "TOX_ENV_NAME", "NOX_CURRENT_SESSION", *OTHERS_OFF),
    *("HF_HUB_OFFLINE", "TRANSFORMERS_OFFLINE", "HF_DATASETS_OFFLINE"),
    "OTEL_METRICS_EXPORTER=none",
)
OWN = "EPOCHMETER_"
DO_NOT_TRACK = ("DO_NOT_TRACK", "DONOTTRACK", "DO_NOTTRACK", "DONOT_TRACK", "DNT")  # in capitals
NO_SETTINGS = ("HOME", "RUN", "PURE", "OTLP_HEADERS", "GA_API_SECRET")  # variables of ours that choose no setting
OTEL_ENDPOINTS = ("OTEL_EXPORTER_OTLP_ENDPOINT", "OTEL_EXPORTER_OTLP_METRICS_ENDPOINT")


def not_for_hosts() -> str:
    """Return the variable that bars destinations chosen by a package (CI, tests, offline, the "off" of another tool), or ""."""
    return next((entry.partition("=")[0] for entry in NOT_FOR_HOSTS if is_on(entry)), "")


def is_on(entry: str) -> bool:
    """Return True if a variable is set, and to no word for "no"; of ``NAME=value``, if it has that value."""
    name, _, wanted = entry.partition("=")
    value = os.environ.get(name, "").strip().lower()
    if not wanted:
        return value not in ("", *FALSE_WORDS)
    return value in (FALSE_WORDS if wanted == "false" else (wanted,))


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
        if spelt in DO_NOT_TRACK and is_on(name):
            yield "sync", ResolvedValue(False, "environment", name)
        elif spelt.startswith(OWN.rstrip("_")) and (fault := _mistyped(name)):
            problems.append(f"{name}: {fault} Nothing is sent until it is mended.")
            yield "sync", ResolvedValue(False, "environment", name)
    if os.environ.get("OTEL_SDK_DISABLED", "").strip().lower() in TRUE_WORDS:
        yield "sync", ResolvedValue(False, "environment", "OTEL_SDK_DISABLED")


def _mistyped(name: str) -> str:
    """Return the fault of a variable that is no setting but looks like an "off", or ""."""
    key, value = name[len(OWN.rstrip("_")) :].lstrip("_-"), os.environ.get(name, "")
    is_known = name.startswith(OWN) and (key in NO_SETTINGS or (key.isupper() and key.lower() in KEYS))
    return "" if is_known or not value.strip() else mistyped(key, value)


def proxies_for(address: Parts) -> dict[str, str]:
    """Return the proxies that the environment (or the system) names for an address, by scheme. This machine needs none."""
    from urllib.request import getproxies, proxy_bypass

    if address.is_here or proxy_bypass(address.host.strip("[]")):
        return {}
    return {scheme: proxy for scheme, proxy in getproxies().items() if scheme in ("http", "https", "all")}


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
        "EPOCHMETER_RUN": json.dumps(request),
        "PYTHONPATH": startup if before is None else os.pathsep.join((startup, before)),
    }
