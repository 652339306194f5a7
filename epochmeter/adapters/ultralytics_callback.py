"""Ultralytics; see `profiler.adapters.ultralytics_callback`."""

from __future__ import annotations

from profiler.adapters.ultralytics_callback import register

__all__ = ["register"]
