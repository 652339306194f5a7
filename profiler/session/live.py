"""The lines of ``Profiler(live=True)`` on stderr: one for each slice, and one for each epoch."""

from __future__ import annotations

import sys

from profiler.records.plain_text import printable

TYPE_CHECKING = False
if TYPE_CHECKING:
    from profiler.records.faults import Faults
    from profiler.records.run import EpochRecord, Run


class LiveLines:
    """Writes the lines of one run.

    Args:
        run: the run.
        faults: counts a stderr that takes none.
        is_on: False to write nothing.
    """

    def __init__(self, run: Run, faults: Faults, *, is_on: bool) -> None:
        self._is_on = is_on
        self._run = run
        self._faults = faults

    def epoch_ended(self, epoch: EpochRecord) -> None:
        """Say how long an epoch took."""
        self._say(f"epoch {epoch.index} in {epoch.duration_ns / 1e9:.2f} s")

    def slices_written(self) -> None:
        """Say how far the run is; called by the sampling thread."""
        if not self._is_on:
            return
        from profiler.report.progress import one_line  # few runs are live

        self._faults.swallow("a live line could not be made", lambda: self._say(one_line(self._run)))

    def _say(self, text: str) -> None:
        if not self._is_on:
            return
        line = f"{printable(self._run.name)}: {printable(text)}\n"
        self._faults.swallow("stderr takes no lines", lambda: sys.stderr.write(line))
