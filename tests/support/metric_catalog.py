"""Every metric there is, gathered from the probes' tables and from the timings. Names are unique; a test says so."""

from __future__ import annotations

import importlib

from profiler.hardware import PROBES, module_of
from profiler.records.readings import MetricSpec
from profiler.storage.metric_rows import SPECS


def probe_specs() -> list[MetricSpec]:
    """Return the metrics of all probes, in the order of `PROBES`; a metric of several vendors counts once."""
    specs = [spec for name in PROBES for spec in getattr(importlib.import_module(module_of(name)), "SPECS", ())]
    return list({id(spec): spec for spec in specs}.values())


def units() -> dict[str, str]:
    """Every metric's name and UCUM unit.

    Raises:
        ValueError: a name is declared twice.
    """
    found = {name: unit for name, (unit, _) in SPECS.items()}
    for spec in probe_specs():
        if spec.name in found:
            raise ValueError(f"the metric {spec.name!r} is declared twice")
        found[spec.name] = spec.unit
    return found
