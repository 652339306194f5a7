"""PyTorch Lightning; see `profiler.adapters.lightning_callback`."""

from __future__ import annotations

from profiler.adapters.lightning_callback import ProfilerCallback

__all__ = ["ProfilerCallback"]
