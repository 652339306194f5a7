"""Consent: whether data may leave now, asked at every export.

Every question reads the settings anew. That costs one ``lstat``, one ``open`` and one ``fstat``, because the settings file
is parsed again only when it has changed (`config.file`).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

TYPE_CHECKING = False
if TYPE_CHECKING:
    from profiler.config.resolve import Resolved


@dataclass(frozen=True)
class ConsentState:
    """The choice of a destination at one moment.

    Attributes:
        choice: the exporter and its addresses.
        decided_at: the date of that choice in the settings file, or None.
    """

    choice: tuple[str | None, ...]
    decided_at: str | None

    def as_list(self) -> list[Any]:
        """Return the state as it is kept on disk beside counts."""
        return [self.decided_at, *self.choice]


def state_of(resolved: Resolved) -> ConsentState:
    """Return the choice that is in force with these settings."""
    settings = resolved.settings
    choice = (settings.exporter, settings.otlp_endpoint, settings.ga_measurement_id, settings.ga_endpoint)
    return ConsentState(choice, resolved.decided)


class Consent:
    """A question that is asked anew at every call: ``consent()``.

    Args:
        resolve: gives the settings in force.
        permits: returns True if these settings permit the data to leave.
        state: the choice under which the data was measured. Under another one it does not leave. None for any choice.
    """

    def __init__(
        self, resolve: Callable[[], Resolved], permits: Callable[[Resolved], bool], state: ConsentState | None = None
    ) -> None:
        self._resolve = resolve
        self._permits = permits
        self._state = state

    def __call__(self) -> bool:
        return self.is_given(self._resolve())

    def is_given(self, resolved: Resolved) -> bool:
        """Return True if these settings permit the data to leave, and the choice has not changed."""
        return self._permits(resolved) and (self._state is None or state_of(resolved) == self._state)
