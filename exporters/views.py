"""The list as OpenTelemetry views, for a program with instruments and a ``MeterProvider`` of its own.

The profiler needs none: its exports are rebuilt from the list. Views drop attributes only from the data points. Exemplars
keep the dropped ones, so a provider with these views needs ``AlwaysOffExemplarFilter``, too.
"""

from __future__ import annotations

from opentelemetry.sdk.metrics.view import DropAggregation, ExponentialBucketHistogramAggregation, View

from exporters.allowlist import METRICS


def views(target: str = "otlp") -> list[View]:
    """Return one view for each listed metric, with its listed attributes, and one that drops every other instrument."""
    listed = [
        View(
            instrument_name=entry.name,
            description=entry.purpose,
            attribute_keys=set(entry.attributes),
            aggregation=ExponentialBucketHistogramAggregation() if entry.kind == "histogram" else None,
        )
        for entry in METRICS
        if target in entry.destinations
    ]
    return [*listed, View(instrument_name="*", aggregation=DropAggregation())]
