"""Cut a run into slices, so that a killed run loses at most some seconds, and a sum at a collector moves meanwhile.

The sampling thread says that a slice is due. The loop closes it between two steps (`Timer.on_slice`), and the sampling
thread writes it. If no step ends, or no loop runs, the sampling thread closes its own part: readings, and the times of
other threads. Those pieces have the same number as the slice in which the long step ends.

The rule it keeps: an epoch is the sum of its slices, because nothing is added to it in another way.
"""

from __future__ import annotations

from collections.abc import Callable
from copy import deepcopy
from dataclasses import replace

from profiler.records.energy import merge_energy
from profiler.records.reading_record import merge_readings
from profiler.records.run import EpochRecord

TYPE_CHECKING = False
if TYPE_CHECKING:
    from profiler.hardware.sampler import Sampler
    from profiler.measure.timer import Timer
    from profiler.records.energy import Energies
    from profiler.records.faults import Faults
    from profiler.session.keeper import RunKeeper


LOOKS = 4  # in the time of a slice, so that a slice that is due is closed and written within it
MAX_LOOK_S = 1.0


class SliceCutter:
    """The open epoch of a run, and the slice that is open in it or outside epochs.

    Args:
        timer: gives the times.
        sampler: gives the readings.
        keeper: takes the slices.
        now: returns the time (ns) since the run's start.
        faults: counts the failures in the loop's thread.
    """

    def __init__(self, timer: Timer, sampler: Sampler, keeper: RunKeeper, now: Callable[[], int], faults: Faults) -> None:
        self._timer = timer
        self._sampler = sampler
        self._keeper = keeper
        self._now = now
        self._faults = faults
        self._slice_ns = 0
        self._look_ns = 0
        self.is_ending = False  # the loop's own thread measures nothing any more
        self._number = 0
        self._is_cut = False  # the epoch has a slice on disk already
        self._part = EpochRecord(None)  # the open slice

    def start(self, slice_s: float) -> float:
        """Begin with the run. Return how often (s) `look` is to be called."""
        look_s = min(slice_s / LOOKS, MAX_LOOK_S)
        self._slice_ns, self._look_ns = round(slice_s * 1e9), round(look_s * 1e9)
        return look_s

    def begin_epoch(self, epoch: EpochRecord | None, at: int) -> None:
        """Begin an epoch, or the time after one (None), at this moment (ns since the run's start)."""
        with self._keeper.lock:
            if not self._part.is_empty:  # another thread has measured something meanwhile, which belongs before the epoch
                self._close(at, with_readings=False)
            self._keeper.add_slices()
            self._keeper.open_epoch = epoch
            self._is_cut = False
            self._part = EpochRecord(None if epoch is None else epoch.index, started_ns=at)

    def collect(self, slice_end: int | None = None) -> None:
        """Move the timer's new measurements into the open slice; ``slice_end`` is that of `Timer.take`."""
        with self._keeper.lock:
            late = self._timer.take(self._part, ended=self.is_ending, slice_end=slice_end)
        for part in late:
            self._keeper.add_late(part)

    def add_energy(self, index: int | None, energy: Energies) -> None:
        """Add energy to the open slice if its epoch is the open one, or else to the epoch that it is of."""
        with self._keeper.lock:
            epoch = self._keeper.open_epoch
            is_open = epoch is not None and index == epoch.index
            if is_open:
                merge_energy(self._part.energy, energy)
        if not is_open:
            self._keeper.add_energy(index, energy)

    def so_far(self) -> EpochRecord | None:
        """Return a copy of the open epoch up to now, or None outside epochs."""
        self.collect(self._timer.began_ns + self._now())
        with self._keeper.lock:
            self._keeper.add_slices()
            epoch = self._keeper.open_epoch
            if epoch is None:
                return None
            copied = epoch.copied()
            copied.merge(self._part)
            merge_energy(copied.energy, self._part.energy)
            copied.duration_ns = self._now() - epoch.started_ns
        return copied

    def close_last(self, at: int) -> EpochRecord | None:
        """Close the last slice of the open epoch. Return the part to write: the whole epoch, if it has no other slice."""
        self.collect()
        with self._keeper.lock:
            epoch, is_whole = self._keeper.open_epoch, not self._is_cut
            if epoch is None:
                return None
            if is_whole:
                part = self._part
                epoch.stages, epoch.phases, epoch.readings = part.stages, part.phases, self._sampler.take()
                epoch.costs, epoch.lines = part.costs, part.lines
                epoch.duration_ns = max(at - epoch.started_ns, 0)
                merge_energy(epoch.energy, self._part.energy)
                self._keeper.add_to_timeline(epoch)
                self._part = EpochRecord(epoch.index, started_ns=at)
            else:
                self._close(at)
                self._keeper.add_slices()
            line = replace(epoch, energy=deepcopy(epoch.energy))  # what becomes known before it is written has its own line
            self._keeper.add_epoch(epoch)
            self.begin_epoch(None, at)
        self._timer.is_slice_due = False
        return line if is_whole else None

    def close_outside(self) -> bool:
        """Close the slice outside epochs. Return False if it is empty."""
        self.collect()
        self._timer.is_slice_due = False
        with self._keeper.lock:
            if self._part.is_empty:
                return False
            self._close(self._now(), with_readings=False)
            self._keeper.add_slices()
        return True

    def close_tail(self) -> None:
        """Close the last slice of the run, with the last readings."""
        with self._keeper.lock:
            self._close(self._now())
            self._keeper.add_slices()

    def close_in_loop(self, at: int) -> None:
        """Close the slice that is due at this moment (host's clock), between two steps. The sampling thread writes it."""
        self._timer.is_slice_due = False
        self._faults.swallow("a slice was not closed", lambda: self._close_at(at - self._timer.began_ns, is_piece=False))

    def look(self) -> None:
        """Say that a slice is due, or close the parts that the loop does not; called by the sampling thread.

        Measurements of the loop's own thread stay due: only that thread can take them.
        """
        age = self._now() - self._part.started_ns
        is_looping = bool(self._timer.owner.segments)
        if age + 2 * self._look_ns >= self._slice_ns:
            self._timer.ask_for_slice()
        if age + (0 if is_looping else self._look_ns) >= self._slice_ns:
            self._close_at(self._now(), is_piece=is_looping)
        self._keeper.write_slices()

    def _close_at(self, at: int, *, is_piece: bool) -> None:
        collected = self._part
        self.collect(self._timer.began_ns + at)
        with self._keeper.lock:
            if self._part is not collected:  # the epoch ended meanwhile
                return
            self._close(at, is_piece=is_piece)

    def _close(self, at: int, *, with_readings: bool = True, is_piece: bool = False) -> None:
        """Close the open slice, hand it over, and begin the next one; under the keeper's lock."""
        part, epoch = self._part, self._keeper.open_epoch
        if with_readings:
            merge_readings(part.readings, self._sampler.take())
        if is_piece and part.is_empty:  # the slice goes on; the log is only told that the run is alive, and where the loop is
            self._keeper.take_slice(EpochRecord(None))
            return
        part.duration_ns = max(at - part.started_ns, 0)
        part.slice = self._number
        part.inferred = epoch is not None and epoch.inferred
        following = EpochRecord(part.index, started_ns=part.ended_ns)
        self._number += not is_piece
        self._is_cut = True
        self._part = following  # no call, and so no signal's handler, comes between this and the next line
        self._keeper.take_slice(part)
