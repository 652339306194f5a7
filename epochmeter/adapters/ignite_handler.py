"""PyTorch Ignite; see `profiler.adapters.ignite_handler`."""

from __future__ import annotations

from profiler.adapters.ignite_handler import attach

__all__ = ["attach"]
