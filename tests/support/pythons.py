"""The interpreters of this machine."""

from __future__ import annotations

import functools
import os
import shutil
import subprocess
from pathlib import Path


@functools.cache
def other_pythons() -> dict[int, str]:
    """Return the interpreters of this machine, by their minor version."""
    versions = Path(os.environ.get("PYENV_ROOT", Path.home() / ".pyenv")) / "versions"
    found = {}
    for minor in range(10, 15):
        candidates = [*sorted(map(str, versions.glob(f"3.{minor}.*/bin/python"))), shutil.which(f"python3.{minor}") or ""]
        for candidate in filter(None, candidates):
            asked = subprocess.run([candidate, "-c", "import sys; print(sys.version_info[1])"], capture_output=True, text=True)
            if asked.stdout.strip() == str(minor):
                found[minor] = candidate
    return found
