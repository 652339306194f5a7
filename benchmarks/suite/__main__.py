"""What Epochmeter costs, beside its floor and its peers: each case in one run, its ways in turns, each in a fresh process.

    python benchmarks/suite [--case KEY ...] [--repeats N] [--peers] [--json FILE] [--pages]

Without ``--peers``: ours and the floors alone. With it, all peers that this Python has (`make bench-peers` makes an
environment with them). ``--json`` writes the figures, also where only some cases were run: the others stay as they are in the
file. ``--pages`` writes the tables of `docs/overhead.md` and the README from the file; nothing is measured.
"""

from __future__ import annotations

import argparse
import importlib.metadata
import json
import os
import platform
import sys
import tempfile
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

import hot
import loops
import machine
import process
import runner
import table
from case import Case

ROOT = Path(__file__).parents[2]
RESULTS = ROOT / "benchmarks" / "results" / "suite.json"
CASES: tuple[Case, ...] = (*hot.CASES, *loops.CASES, *machine.CASES, *process.CASES)
PEERS = [
    line.partition("==")[0] for line in (ROOT / "benchmarks" / "peers.txt").read_text("utf-8").splitlines() if "==" in line
]


def machine_facts() -> dict[str, Any]:
    """Return what the machine is, in words that name no machine."""
    import torch

    from profiler.measure import hot_path

    model = platform.processor() or platform.machine()
    cpus = Path("/proc/cpuinfo")
    if cpus.exists():
        named = [
            line.partition(":")[2].strip() for line in cpus.read_text("utf-8").splitlines() if line.startswith("model name")
        ]
        model = named[0] if named else model
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30 if hasattr(os, "sysconf") else 0
    return {
        "processor": model,
        "cores": os.cpu_count(),
        "memory_gib": round(memory) or None,
        "system": f"{platform.system()} {platform.machine()}",
        "python": platform.python_version(),
        "torch": torch.__version__,
        "hot_path": "in Python" if hot_path.COMPILED is None else "compiled",
        "load_at_start": round(os.getloadavg()[0], 2) if hasattr(os, "getloadavg") else None,
    }


def versions() -> dict[str, str]:
    """Return the versions of the peers that this Python has."""
    found = {}
    for name in PEERS:
        try:
            found[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    return found


def missed(case: Case, result: dict[str, Any]) -> list[str]:
    """Return the goals that ours missed, in words."""
    figures = {figure.key: figure for figure in case.figures}
    found = []
    for (name, key), goal in case.goals.items():
        row = result["figures"][key].get(name)
        if row is not None and row[figures[key].against]["median"] > goal:
            found.append(f"goal of {goal:g} missed: {name}")
    return found


def measure(cases: list[Case], arguments: argparse.Namespace, kept: dict[str, Any]) -> dict[str, Any]:
    """Run the cases, and return the results, those that are kept from before among them."""
    results = {
        "date": datetime.now(timezone.utc).date().isoformat(),
        "machine": machine_facts(),
        "peers": versions() if arguments.peers else {},
        "cases": dict(kept.get("cases", {})),
    }
    with tempfile.TemporaryDirectory() as place:
        library = machine.build(Path(place))
        for case in cases:
            print(f"{case.key}: {case.title}", flush=True)
            result = runner.measure(case, arguments.peers, arguments.repeats, library)
            results["cases"][case.key] = result
            print("\n".join(table.lines_of(case, result)), flush=True)
            print("\n".join(missed(case, result)), flush=True)
            if arguments.json:
                arguments.json.write_text(json.dumps(results, indent=1) + "\n", encoding="utf-8")
    return results


def write_pages() -> None:
    """Write the tables of the pages from the results."""
    results = json.loads(RESULTS.read_text("utf-8"))
    for page, name, content in (
        (ROOT / "docs" / "overhead.md", "suite", table.machine(results) + "\n" + table.markdown(CASES, results)),
        (ROOT / "README.md", "cost", table.short(CASES, results)),
    ):
        page.write_text(table.between(page.read_text("utf-8"), name, content), encoding="utf-8")


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--case", nargs="+", choices=[case.key for case in CASES], metavar="KEY", help="only these cases")
    parser.add_argument("--repeats", type=int, help="instead of each case's own number")
    parser.add_argument("--peers", action="store_true", help="measure the peers, too")
    parser.add_argument("--json", type=Path, metavar="FILE")
    parser.add_argument("--pages", action="store_true", help="write the pages' tables from the results; measure nothing")
    arguments = parser.parse_args()
    if arguments.pages:
        write_pages()
        return 0
    os.environ["EPOCHMETER_SYNC"] = "0"
    chosen = [case for case in CASES if not arguments.case or case.key in arguments.case]
    kept = (
        json.loads(arguments.json.read_text("utf-8")) if arguments.json and arguments.json.exists() and arguments.case else {}
    )
    measure(chosen, arguments, kept)
    return 0


if __name__ == "__main__":
    sys.exit(main())
