"""Hugging Face Transformers; see `profiler.adapters.transformers_callback`."""

from __future__ import annotations

from profiler.adapters.transformers_callback import ProfilerCallback

__all__ = ["ProfilerCallback"]
