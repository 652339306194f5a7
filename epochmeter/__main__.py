"""``python -m epochmeter``: the command, if the console script is not on the path."""

from __future__ import annotations

from profiler.cli import main

main()
