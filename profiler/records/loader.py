"""The settings of a DataLoader, as plain data. They stay on this machine."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class LoaderFacts:
    """The settings of a DataLoader, by torch's own names.

    Attributes:
        workers: its ``num_workers``.
        batch_size: samples in a batch, None if a sampler of the program's own decides.
        pin_memory: it copies batches to page-locked memory.
        prefetch_factor: batches that each worker fetches ahead, None without workers.
        persistent_workers: its workers live on after an epoch.
    """

    workers: int
    batch_size: int | None = None
    pin_memory: bool = False
    prefetch_factor: int | None = None
    persistent_workers: bool = False
