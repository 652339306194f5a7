"""The ranks of one distributed job, each of which records a run of its own."""

from __future__ import annotations

from pathlib import Path

from profiler.errors import RunLogError
from profiler.storage.run_log import run_paths
from profiler.storage.run_reader import outline

NEARBY = 4  # times as many logs as there are ranks are looked at, on either side


def logs_of_job(log: Path) -> list[Path]:
    """Return the logs of all ranks of this log's job in its folder, in the order of ranks; none without a job.

    Raises:
        RunLogError: this log cannot be read.
    """
    run = outline(log)
    if not run.job:
        return []
    paths = run_paths(log.parent)
    here, far = paths.index(log), NEARBY * (run.world_size or 1)
    found: dict[int, Path] = {}
    for path in paths[max(here - far, 0) : here + far + 1]:
        try:
            other = outline(path)
        except RunLogError:
            continue  # of another run: this one has been read
        if other.job == run.job and other.rank is not None:
            found[other.rank] = path
    return [found[rank] for rank in sorted(found)]
