"""The compiled stand-in for NVIDIA's library."""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

FAKE_NVML = Path(__file__).parent / "fake_nvml" / "nvml.c"


def build_fake_nvml(into: Path, *defines: str) -> Path:
    """Compiles the stand-in for NVIDIA's library; the folder is one for LD_LIBRARY_PATH."""
    compiler = shutil.which("cc") or shutil.which("gcc")
    if compiler is None or sys.platform != "linux":
        pytest.skip("the stand-in for NVML is built with a C compiler, on Linux")
    into.mkdir(parents=True, exist_ok=True)
    library = into / "libnvidia-ml.so.1"
    flags = ["-std=gnu11", "-Wall", "-Wextra", "-Werror", "-O1", "-shared", "-fPIC", "-fvisibility=hidden"]
    # The file has the library's name, for LD_LIBRARY_PATH, and the object has not: once it is loaded into this process,
    # no other test is to take it for the real one.
    name = "-Wl,-soname,fake-nvml.so"
    subprocess.run([compiler, *flags, *defines, name, "-o", str(library), str(FAKE_NVML), "-lm", "-lpthread"], check=True)
    return library


class Machine:
    """The compiled stand-in for NVML, in this process: what it plays is told in the words of `fake_nvml/nvml.c`."""

    def __init__(self, library: Any, monkeypatch: pytest.MonkeyPatch) -> None:
        self._library = library
        self._monkeypatch = monkeypatch
        self.plays("")
        library.fake_nvml_forget()

    def plays(self, *entries: str) -> None:
        self._monkeypatch.setenv("FAKE_NVML", ";".join(entries))

    def calls(self, name: str) -> int:
        times: int = self._library.fake_nvml_calls(name.encode())
        return times
