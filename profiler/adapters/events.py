"""Check the names of a framework's events: an unknown one would never fire, and nobody would notice."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from profiler.errors import ArgumentTypeError, ArgumentValueError, did_you_mean
from profiler.records.vocabulary import phase_name

Phases = Mapping[str, "tuple[str, str]"]


def check_phases(phases: Phases | None, known: Iterable[str]) -> dict[str, tuple[str, str]]:
    """Return the phases that last from one event to another, checked.

    Raises:
        ArgumentTypeError, ArgumentValueError: a name cannot be a phase's, or the framework does not have the event; close
            matches are suggested.
    """
    names = list(known)
    checked = {}
    for phase, events in (phases or {}).items():
        if not isinstance(events, tuple) or len(events) != 2:
            raise ArgumentTypeError(f"phase {phase!r} lasts from one event to another, a tuple of two names, not {events!r}")
        for event in events:
            check_event(event, names)
        checked[phase_name(phase)] = events
    return checked


def check_event(event: str, known: Iterable[str]) -> str:
    """Return the event if the framework has it.

    Raises:
        ArgumentValueError: it does not.
    """
    names = list(known)
    if event not in names:
        hint = did_you_mean(str(event), names)
        raise ArgumentValueError(f"there is no event {event!r} here.{hint} Known are: {', '.join(sorted(names))}.")
    return event
