"""Many runs as one table: read logs into Parquet files, or into ClickHouse, and ask. Nothing here is loaded by a run."""

from __future__ import annotations

TYPE_CHECKING = False
if TYPE_CHECKING:
    from pathlib import Path

    from profiler.fleet.asking import Asked


def open(place: str | Path) -> Asked:  # noqa: A001  # profiler.fleet.open(...), as one says it
    """Return the fleet in a folder that ``epochmeter fleet load`` has filled, or on a server, to be asked.

    Args:
        place: the folder, or ``clickhouse://user:password@host:8123/database``.

    Raises:
        ArgumentValueError: the address is none.
        ProfilerError: there is no fleet, or the packages of the extra ``fleet`` are missing.
    """
    from profiler.errors import ProfilerError

    try:
        from profiler.fleet.asking import open_fleet

        return open_fleet(place)
    except ImportError:
        raise ProfilerError(NEEDS) from None


NEEDS = "a fleet needs more packages: pip install 'epochmeter[fleet]'"
