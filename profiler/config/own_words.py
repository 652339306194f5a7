"""The user's own words for whose run it is: a service's name, labels, and resource attributes that the user has named.

They go to the user's own collector or Prometheus, and nowhere else: not to Google Analytics, and to no destination that a
package chose. Nothing is taken from the environment that the setting ``otlp_resource`` does not name.
"""

from __future__ import annotations

from profiler.config.environment import variables
from profiler.config.word_grammar import CHECKS, LABEL_PREFIX, SERVICE_NAME, VALUE, labels_in, names_in

TYPE_CHECKING = False
if TYPE_CHECKING:
    from profiler.config.resolve import Resolved


ATTRIBUTES, OTEL_NAME = "OTEL_RESOURCE_ATTRIBUTES", "OTEL_SERVICE_NAME"


def own_words(resolved: Resolved) -> dict[str, str]:
    """Return the user's own words for a run as resource attributes, in a fixed order; none for a package's destination."""
    if resolved.host_chose:
        return {}
    given = {key: resolved.values[key].value for key in CHECKS if resolved.values[key].source != "host"}
    found = {name: value for name, value in _named(resolved).items() if VALUE.fullmatch(value)}
    if given.get("service_name"):
        found[SERVICE_NAME] = given["service_name"]
    if given.get("labels"):
        found.update({LABEL_PREFIX + key: value for key, value in labels_in(given["labels"]).items()})
    return dict(sorted(found.items()))


def unsayable(resolved: Resolved) -> list[str]:
    """Return the attributes that the user has named, and whose values cannot be sent."""
    return [name for name, value in _named(resolved).items() if not VALUE.fullmatch(value)]


def _named(resolved: Resolved) -> dict[str, str]:
    """Return the attributes of this environment that the user has named, with their values as they are."""
    names = resolved.values["otlp_resource"]
    if not names.value or names.source == "host":
        return {}
    known = _attributes()
    return {name: known[name] for name in names_in(names.value) if known.get(name)}


def _attributes() -> dict[str, str]:
    """Return OpenTelemetry's resource attributes of this environment, percent-decoded as its specification says."""
    from urllib.parse import unquote  # few runs need it

    told = variables((ATTRIBUTES, OTEL_NAME))
    pairs = (part.partition("=") for part in told.get(ATTRIBUTES, "").split(","))
    found = {key.strip(): unquote(value.strip()) for key, equals, value in pairs if equals}
    return {**found, **({SERVICE_NAME: told[OTEL_NAME].strip()} if OTEL_NAME in told else {})}
