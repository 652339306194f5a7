"""Run the fast tests on every Python that the package supports: ``make test-all``. One that is not here is skipped, and named.

Each has an environment of its own in ``.venvs``. The tests need torch; a Python without a build of it is skipped as well.
"""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

from support.pythons import other_pythons

ROOT = Path(__file__).parents[2]
PLACE = ROOT / ".venvs"
MINORS = range(10, 14)
FAST = ("-q", "-m", "not slow and not proof and not gpu", "-n", "2", "--dist", "loadfile")


def environment(version: str, program: str) -> Path | None:
    """Make or bring up to date the environment of a version. Return its Python, or None if there is no torch for it."""
    folder = PLACE / version
    python = folder / ("Scripts" if sys.platform == "win32" else "bin") / "python"
    if not python.exists():
        subprocess.run([program, "-m", "venv", str(folder)], check=True)
    install = [
        str(python),
        "-m",
        "pip",
        "--disable-pip-version-check",
        "install",
        "--quiet",
        "-c",
        str(ROOT / "constraints.txt"),
    ]
    has_torch = subprocess.run([*install, "torch"], capture_output=True).returncode == 0
    if not has_torch:
        return None
    subprocess.run([*install, "-e", f"{ROOT}[dev]"], check=True)
    subprocess.run([*install, "-e", str(ROOT / "examples" / "digitreader")], check=True)
    return python


def main() -> int:
    results = {}
    for minor in MINORS:
        version, program = f"3.{minor}", other_pythons().get(minor)
        if program is None:
            results[version] = "skipped: it is not on this machine"
            continue
        python = environment(version, program)
        if python is None:
            results[version] = "skipped: there is no torch for it"
            continue
        done = subprocess.run([str(python), "-m", "pytest", *FAST], cwd=ROOT)
        results[version] = "passed" if done.returncode == 0 else "FAILED"
    print()
    for version, result in results.items():
        print(f"Python {version}: {result}")
    return int(any(result.startswith("FAILED") for result in results.values()))


if __name__ == "__main__":
    sys.exit(main())
