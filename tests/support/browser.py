"""The browser that tests look with."""

from __future__ import annotations

import shutil
import subprocess

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")


def browse(address: str, *options: str) -> subprocess.CompletedProcess[str]:
    """Open an address in the browser without a window. What its console says is on stderr."""
    assert CHROMIUM is not None, "Chromium is not on this machine"
    return subprocess.run(
        [CHROMIUM, "--headless", "--no-sandbox", "--disable-gpu", "--enable-logging=stderr", *options, address],
        capture_output=True,
        text=True,
        timeout=120,
        check=True,
    )
