"""The delivery of a package's counts and crashes.

The rules it keeps: with `sending` below it, this room knows ``exporters``, and loads them only once there is consent.
Counts stay on this machine if they were made before the user saw the notice, while anything said "off", or under another
choice.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from typing import Any

from profiler.sending.dispatch import entries_for, record
from profiler.sending.notices import announce

TYPE_CHECKING = False
if TYPE_CHECKING:
    from exporters.rules import Declared
    from profiler.embedding.package_info import PackageInfo
    from profiler.sending.dispatch import Dispatch


def declared_from(data: Mapping[str, Any]) -> Declared:
    """Return the declarations as an ``exporters.Declared``."""
    from exporters.rules import declared_from

    return declared_from(data)


def name_alone(name: str) -> Declared:
    """Return the declarations of a package's runs: its name."""
    from exporters.rules import Declared

    return Declared(name)


class Delivery:
    """The entries of the outbox for one destination, delivered beside the program.

    Args:
        info: the package.
        dispatch: the destination.
        consent: asked before each attempt.
        what: a name for the entries, by which the notice is remembered as shown.
        of: the data in words, for the notice.
        stop: how to stop it, in words.
        announced: True if the user has seen a notice before, because the package has chosen the destination.
    """

    def __init__(
        self,
        info: PackageInfo,
        dispatch: Dispatch,
        consent: Callable[[], bool],
        what: str,
        of: str,
        stop: str,
        *,
        announced: bool,
    ) -> None:
        self._info = info
        self._dispatch = dispatch
        self._consent = consent
        self._what = what
        self._of = of
        self._stop = stop
        self._announced = announced

    def run(self, until: Callable[[], float]) -> list[str]:
        """Deliver until that moment of the monotonic clock. Return the faults, in words."""
        declared = {None, name_alone(self._info.name), declared_from(self._info.declared)}
        courier = self._dispatch.courier(self._consent, self._record, entries_for(self._dispatch.key, declared))
        try:
            return courier.deliver(until, patience_s=max(until() - time.monotonic(), 0.0)).notes
        finally:
            courier.close()

    def _record(self, where: str, body: bytes) -> Callable[[str], None]:
        answered = record(where, body)
        if not self._announced:
            announce(
                f"{self._what}: {where}",
                f"{self._info.name}: {self._of} (no names, words or values of yours), goes to {where}. {self._stop}\n",
            )
        return answered
