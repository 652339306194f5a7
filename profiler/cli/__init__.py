"""The command ``epochmeter``: one file a command, one row each in `COMMANDS`.

The rule it keeps: a user's error is one line on stderr and exit code 2, and ``--json`` goes to stdout alone. Importing this
loads no command: packages that embed us mount two of them in their own programs (`mount`).
"""

from __future__ import annotations

import sys

# Each is a module here, with that name in it.
COMMANDS = (
    *("demo", "run", "runs", "report", "compare", "whatif", "watch", "bench", "fleet", "settings", "telemetry", "doctor"),
    "version",
)


def main() -> None:
    """Run the console script."""
    from profiler.cli.app import app
    from profiler.cli.output import complain, prepare_streams, written
    from profiler.errors import ProfilerError

    prepare_streams()
    try:
        with written():
            app()
    except ProfilerError as error:
        complain(error)
        sys.exit(2)
