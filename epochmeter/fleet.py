"""Many runs as one table; see `profiler.fleet`."""

from __future__ import annotations

from profiler.fleet import open  # noqa: A004  # fleet.open(...), as one says it

__all__ = ["open"]
