"""A first baseline: how ``examples/first/train.py`` runs on one machine, many times, made as a team would make its own.

Each job is a real run of the example in a process of its own. Their logs go the way of any fleet: load, export, baseline. The
file says that it is of one machine, and is signed with a key that is thrown away.

    python benchmarks/seed_baseline.py [--jobs 25] [--output examples/first/baseline.json]
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import tempfile
from datetime import date, timedelta
from pathlib import Path

from profiler import fleet
from profiler.fleet.baseline import make_baseline
from profiler.fleet.export import Rules, export

ROOT = Path(__file__).parents[1]
NOTE = "runs of Epochmeter's example on one machine of its makers, no fleet"
LEAST = 20  # jobs of a cell, as in `fleet export`
LATER = timedelta(days=14)  # the jobs are of today, and a week is settled only later: here nobody's job can still arrive


def main() -> None:
    """Run the jobs, and write the file."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--jobs", type=int, default=25)
    parser.add_argument("--output", type=Path, default=ROOT / "examples" / "first" / "baseline.json")
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place)
        epochmeter = [sys.executable, "-m", "epochmeter"]
        environment = {**os.environ, "EPOCHMETER_HOME": str(folder / "home")}
        for _ in range(given.jobs):
            job = [*epochmeter, "run", "examples/first/train.py"]
            subprocess.run(job, cwd=ROOT, env=environment, check=True, capture_output=True)
        subprocess.run([*epochmeter, "fleet", "load", "--into", str(folder / "fleet")], env=environment, check=True)
        rules = Rules(LEAST, ("hardware", "workload"), "")
        export(fleet.open(folder / "fleet"), folder / "public", rules, date.today() + LATER)
        classes, _ = make_baseline(folder / "public", given.output, folder / "key.pem", NOTE)
    print(f"{given.output}: {classes} class of {given.jobs} jobs")


if __name__ == "__main__":
    main()
