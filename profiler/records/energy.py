"""The energy that GPUs used, as plain data."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, replace

from profiler.records.histogram import NS

RESET_AFTER_NS = 2_000_000_000  # a counter that stays lower for so long was reset
STEP_NS = 100_000_000  # NVIDIA's energy counters move every 20 to 100 ms, by kind of card


@dataclass
class Energy:
    """The energy of one GPU, and its uncertainty.

    Attributes:
        joules: the energy (J).
        seconds: the time over which the counter was read.
        uncertain: upper bound (J) on energy that may belong to a neighbouring stage or epoch. It lay between the same two
            readings, or within a step of the counter. The counter always lags, so these errors have the same sign and
            are summed, not averaged.
        between_epochs: upper bound (J) on energy that may belong to another epoch.
        between_stages: upper bound (J) on energy that may belong to another stage.
    """

    joules: float = 0.0
    seconds: float = 0.0
    uncertain: float = 0.0
    between_epochs: float = 0.0
    between_stages: float = 0.0

    @property
    def is_resolved(self) -> bool:
        """True if the counter moved, and at least half of the energy surely belongs here."""
        return 0 < self.joules >= 2 * self.uncertain

    def add(self, other: Energy) -> None:
        """Add the energy of a later time."""
        self.joules += other.joules
        self.seconds += other.seconds
        self.uncertain += other.uncertain
        self.between_epochs += other.between_epochs
        self.between_stages += other.between_stages


Energies = dict[str, dict[str, Energy]]  # by stage ("" outside stages), and by the GPU's hw.id


def sum_of(energies: Iterable[Energy]) -> Energy:
    """Return the sum."""
    total = Energy()
    for energy in energies:
        total.add(energy)
    return total


def energy_by_gpu(energies: Energies) -> dict[str, Energy]:
    """Return the energy of each GPU in an epoch, or in a run.

    Energy shared by two stages belongs to the epoch. One step of the counter stays uncertain.
    """
    found: dict[str, Energy] = {}
    for gpus in energies.values():
        for gpu, energy in gpus.items():
            found.setdefault(gpu, Energy()).add(replace(energy, uncertain=energy.between_epochs))
    for energy in found.values():
        energy.uncertain += energy.joules / energy.seconds * STEP_NS / NS if energy.seconds else 0.0
    return found


def merge_energy(into: Energies, other: Energies) -> None:
    """Add energies, by stage and GPU."""
    for stage, gpus in other.items():
        for gpu, energy in gpus.items():
            into.setdefault(stage, {}).setdefault(gpu, Energy()).add(energy)
