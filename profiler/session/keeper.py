"""Add measurements to the run, and write them to the run log as soon as they are known."""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable
from copy import deepcopy
from dataclasses import replace
from pathlib import Path
from typing import Any

from profiler.records.energy import energy_by_gpu, merge_energy, sum_of
from profiler.records.run import EpochRecord, Sums
from profiler.records.slices import add_slice, slice_of
from profiler.storage.run_log import RunLog

TYPE_CHECKING = False
if TYPE_CHECKING:
    from profiler.records.energy import Energies
    from profiler.records.faults import Faults
    from profiler.records.run import Run


AT_ONCE = 16  # epochs added up before the loop gets its turn
MAX_UNSAVED = 512  # lines kept for a disk that may have room again
MAX_APART = 32  # of them, before slices are joined
FULL_BYTES = 3_000_000  # of a log, whose older slices are then joined
GROWTH = 1.5  # a log that cannot be made much shorter is tried again once it has grown by that
NOT_SHORTER = "the run log could not be made shorter"
VANISHED = "the run log had vanished, and was written again"


class RunKeeper:
    """The one writer of a run's record and of its log.

    It has two locks, never held together for long. ``lock`` guards the record, which the loop extends while an export reads
    it. A second one serialises the lines of the log, which three threads write.

    Args:
        run: the record.
        faults: counts a log that cannot be written.
        refresh: brings the run's duration, facts and notes up to date.
        yield_gil: called by the sampling thread between two pieces of work, so that the loop gets its turn.
        on_slices: called when slices have been written.
    """

    def __init__(
        self,
        run: Run,
        faults: Faults,
        refresh: Callable[[], None],
        yield_gil: Callable[[], None],
        on_slices: Callable[[], None] = lambda: None,
    ) -> None:
        self._run = run
        self._faults = faults
        self._refresh = refresh
        self._yield_gil = yield_gil
        self._log: RunLog | None = None
        self._shorter_at = FULL_BYTES
        self.open_epoch: EpochRecord | None = None  # the sum of its slices that are closed
        self._on_slices = on_slices
        self._unsaved: list[EpochRecord] = []
        self._closed: deque[EpochRecord] = deque()  # slices closed by the loop, to be added to their epoch
        # The loop only hands a closed slice over, and the sampling thread adds it to its epoch and writes it. This is a call
        # of C: a signal's handler (Ctrl-C) could strike at the entry of a function in Python, and the slice would be lost.
        self.take_slice = self._closed.append
        self._slices: deque[EpochRecord] = deque()  # added, to be written by the sampling thread
        self._sums = Sums()
        self._outside_energy = EpochRecord(None)
        self._make_locks()

    def _make_locks(self) -> None:
        self.lock = threading.RLock()
        self._log_lock = threading.RLock()
        self._sums_lock = threading.Lock()

    @property
    def log_path(self) -> Path | None:
        """The file of the run log, or None if there is none."""
        return None if self._log is None else self._log.path

    @property
    def locks(self) -> tuple[threading.RLock, threading.RLock]:
        """The locks of the record and of the log."""
        return self.lock, self._log_lock

    def open_log(self, folder: Path) -> None:
        """Begin the run log. The file is made with its first line."""
        self._log = RunLog(folder, self._run)

    def close_log(self) -> None:
        """Close the run log."""
        with self._log_lock:
            if self._log is not None:
                self._faults.swallow("the run log could not be closed", self._log.close)
            self._log = None

    def note_alive(self) -> None:
        """Note on the log that the run was alive now."""
        with self._log_lock:
            if self._log is not None:
                self._log.touch()

    def save(self, *parts: EpochRecord) -> None:
        """Write lines of the log, after the slices that wait. A line that the disk refuses is kept, and tried again later."""
        with self._log_lock:
            waiting = [self._slices.popleft() for _ in range(len(self._slices))]
            if self._log is None:
                return
            self._unsaved += (*waiting, *parts)
            self._faults.swallow("the run log could not be written", self._append_unsaved)
            if len(self._unsaved) > MAX_APART:
                self._unsaved = joined_slices(self._unsaved)
            if len(self._unsaved) > MAX_UNSAVED:
                self._run.note("a line of the run log was given up, because none could be written")
                del self._unsaved[0]

    def add_slices(self) -> None:
        """Add the closed slices to the open epoch, or to the time outside epochs. It is not written here."""
        with self.lock:
            while self._closed:
                part = self._closed.popleft()
                into = self._run.outside if self.open_epoch is None else self.open_epoch
                into.merge(part)
                merge_energy(into.energy, part.energy)
                if not part.is_empty:
                    self.add_to_timeline(part)
                self._slices.append(part)

    def write_slices(self) -> None:
        """Write the slices that wait, and see to it that they outlast the machine's power; called by the sampling thread."""
        self.add_slices()
        if self._slices:
            self._refresh()
            self.save()
            self._on_slices()
            self._look_after_log()

    def _look_after_log(self) -> None:
        log = self._log
        if log is not None:
            log.sync()
            if log.size() >= self._shorter_at:
                self._faults.swallow(NOT_SHORTER, lambda: self._make_shorter(log))

    def _make_shorter(self, log: RunLog) -> None:
        from profiler.storage.compaction import make_shorter  # few runs last so long

        self._shorter_at = round(log.size() * GROWTH)  # should it fail
        make_shorter(log, self._while_nobody_writes, self._yield_gil)
        self._shorter_at = max(FULL_BYTES, round(log.size() * GROWTH))

    def _while_nobody_writes(self, action: Callable[[], None]) -> None:
        with self._log_lock:
            action()

    def add_ranks(self, told: EpochRecord | None) -> None:
        """Add and write the times of all ranks, which take the place of those before."""
        if told is not None:
            with self.lock:
                outside = self._run.outside
                outside.ranks, outside.rank_epochs, outside.rank_missing = told.ranks, told.rank_epochs, told.rank_missing
            self.save(told)

    def _append_unsaved(self) -> None:
        log = self._log
        if log is not None and log.has_vanished():
            log.close()
            self._run.note(VANISHED)
            self._unsaved = self._all_parts()
        while self._unsaved and log is not None:
            log.append(self._run, self._unsaved[0])
            del self._unsaved[0]

    def _all_parts(self) -> list[EpochRecord]:
        """Return everything that a log of the run holds so far. Energy outside epochs is written at the run's end."""
        with self.lock:
            self.add_slices()
            outside = self._run.outside.copied()
            outside.energy = {}
            begun = [] if self.open_epoch is None else [self.open_epoch.copied()]
            return [*self._run.epochs, *begun, outside]

    def add_epoch(self, epoch: EpochRecord) -> None:
        """Add a finished epoch to the run. `save` writes it."""
        with self.lock:
            self._run.epochs.append(epoch)

    def add_to_timeline(self, part: EpochRecord) -> None:
        """Remember when the things of a slice, or of a whole epoch, happened."""
        add_slice(self._run.slices, slice_of(part))

    def add_outside(self, part: EpochRecord) -> None:
        """Add and write a measurement outside every epoch."""
        with self.lock:
            self._run.outside.merge(part)
        self._refresh()
        self.save(part)

    def add_late(self, part: EpochRecord) -> None:
        """Add and write device times of an epoch that has ended: the GPU was behind."""
        with self.lock:
            position = self._position(part.index)
            epoch = None if position is None else self._run.epochs[position]
            if epoch is not None and position is not None:
                epoch.merge(part)
                part.started_ns = epoch.started_ns
                self._sums.add_late(position, part)
        if epoch is None:
            self.add_outside(part)
        else:
            self.save(part)

    def add_energy(self, index: int | None, energy: Energies) -> None:
        """Add and write the energy of an epoch, once the counters were read after its end.

        An epoch too short for the counters counts only in the run's sum, and takes no line of the log.
        """
        with self.lock:
            position = self._position(index)
            epoch = None if position is None else self._run.epochs[position]
            known = {} if epoch is None else deepcopy(epoch.energy)
            merge_energy(known, energy)
            if not sum_of(energy_by_gpu(known).values()).is_resolved:
                epoch = None
            merge_energy((self._run.outside if epoch is None else epoch).energy, energy)
            if epoch is None:
                merge_energy(self._outside_energy.energy, energy)
        if epoch is not None:
            self.save(EpochRecord(epoch.index, started_ns=epoch.started_ns, energy=energy))

    def save_outside_energy(self) -> None:
        """Write the energy used outside epochs, in one line at the run's end."""
        if self._outside_energy.energy:
            self.save(self._outside_energy)

    def whole(self) -> EpochRecord:
        """Return everything the run measured so far, without the slice that is open."""
        with self.lock:
            self.add_slices()
            return self._sums.of(self._run, self.open_epoch)

    def sum_up(self) -> None:
        """Add up the epochs that have ended, so that the end of a run does not have to. Called by the sampling thread."""
        is_behind = True
        while is_behind:
            with self.lock:  # for a moment each time, because the loop may be waiting
                is_behind = self._sums.advance(self._run, AT_ONCE)

    def so_far(self, epoch: EpochRecord | None) -> tuple[Run, EpochRecord]:
        """Return the run so far, with the open epoch, and its sums.

        Later measurements do not change them, but for the energy of an epoch, which is known late.
        """
        with self.lock:
            self.add_slices()
            run, begun = self._run, [] if epoch is None else [epoch]
            whole = self._sums.of(run, epoch)
            copied = replace(run, outside=run.outside.copied(), hardware=deepcopy(run.hardware), notes=dict(run.notes))
            copied.epochs, copied.slices = [*run.epochs, *begun], list(run.slices)
            return copied, whole

    def snapshot(self, is_running: bool, yield_gil: Callable[[], None]) -> Any:
        """Return the sums of the run so far, for the gate. May be called from any thread.

        The loop is locked out only while the sums are added up.

        Args:
            is_running: False after the end: then the data is that of the log's last line.
            yield_gil: called between two pieces of work, so that the loop gets its turn.
        """
        from profiler.sending.snapshot import summed_snapshot

        with self._sums_lock:
            with self.lock:
                if is_running:
                    self._refresh()
                whole = self.whole()
            yield_gil()
            now = self._run.started_unix_ns + self._run.duration_ns
            return summed_snapshot(self._run, now, self._sums, whole, yield_gil)

    def forget(self) -> None:
        """Reset after a fork: the log is the parent's, and a lock may be held by a thread that does not exist here."""
        self._make_locks()
        log, self._log = self._log, None
        if log is not None:
            self._faults.swallow("the run log could not be closed", log.close)

    def _position(self, index: int | None) -> int | None:
        """Return the position of a finished epoch; the latest one, if several have that number."""
        epochs = self._run.epochs
        return next((position for position in reversed(range(len(epochs))) if epochs[position].index == index), None)


def joined_slices(parts: list[EpochRecord]) -> list[EpochRecord]:
    """Return the parts with neighbouring slices of one epoch joined, for a disk that has been full for long."""
    joined: list[EpochRecord] = []
    for part in parts:
        before = joined[-1] if joined else None
        if before is not None and None not in (before.slice, part.slice) and before.index == part.index:
            before.merge(part)
            merge_energy(before.energy, part.energy)
            before.slice = part.slice
        else:
            joined.append(part)
    return joined
