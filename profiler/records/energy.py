"""Part of `profiler.measure.energy_meter`."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, replace

from profiler.records.histogram import NS

RESET_AFTER_NS = 2_000_000_000  # a counter that stays below what it was for so long was reset
STEP_NS = 100_000_000  # NVIDIA's energy counters move every 20 to 100 ms, by kind of card


@dataclass
class Energy:
    """What one GPU used, in joules, and how sure that is.

    Attributes:
        seconds: for how long it was metered.
        uncertain: of the joules, those that may be of what went on before or after: between the same two readings, or within
            a step of the counter. As a counter is always behind, these lie in one direction, and add up.
        between_epochs: of what lay between two readings, that with another epoch.
        between_stages: of what is uncertain, that with another stage.
    """

    joules: float = 0.0
    seconds: float = 0.0
    uncertain: float = 0.0
    between_epochs: float = 0.0
    between_stages: float = 0.0

    @property
    def is_resolved(self) -> bool:
        """Whether the counters moved, and most of it is sure to belong here."""
        return 0 < self.joules >= 2 * self.uncertain

    def add(self, other: Energy) -> None:
        self.joules += other.joules
        self.seconds += other.seconds
        self.uncertain += other.uncertain
        self.between_epochs += other.between_epochs
        self.between_stages += other.between_stages


Energies = dict[str, dict[str, Energy]]  # by stage ("" is what was in none), and by the GPU's hw.id


def sum_of(energies: Iterable[Energy]) -> Energy:
    total = Energy()
    for energy in energies:
        total.add(energy)
    return total


def energy_by_gpu(energies: Energies) -> dict[str, Energy]:
    """What each GPU used in an epoch, or in a run: what its stages share is its own, and one step of the counter is open."""
    found: dict[str, Energy] = {}
    for gpus in energies.values():
        for gpu, energy in gpus.items():
            found.setdefault(gpu, Energy()).add(replace(energy, uncertain=energy.between_epochs))
    for energy in found.values():
        energy.uncertain += energy.joules / energy.seconds * STEP_NS / NS if energy.seconds else 0.0
    return found


def merge_energy(into: Energies, other: Energies) -> None:
    for stage, gpus in other.items():
        for gpu, energy in gpus.items():
            into.setdefault(stage, {}).setdefault(gpu, Energy()).add(energy)
