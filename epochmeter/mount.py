"""The subcommands ``settings`` and ``telemetry`` in a package's own program; see `profiler.cli.mount`."""

from __future__ import annotations

from profiler.cli.mount import settings, telemetry

__all__ = ["settings", "telemetry"]
