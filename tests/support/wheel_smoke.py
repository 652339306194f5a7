"""Check an installed epochmeter, in a folder without its source: a run, its report, and the compiled hot path."""

import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path

os.environ.setdefault("EPOCHMETER_HOME", tempfile.mkdtemp())

import exporters
from epochmeter import Profiler, settings
from profiler.measure import hot_path

with Profiler("smoke") as prof:
    for _ in prof.epochs(2):
        for _ in prof.train(range(10)):
            with prof.phase("forward"):
                pass
assert "site-packages" in exporters.__file__, exporters.__file__
assert settings["sync"] is True
command = [sys.executable, "-m", "epochmeter", "report", "--format", "json"]
report = subprocess.run(command, capture_output=True, text=True, check=True, cwd=Path(sys.prefix)).stdout
assert json.loads(report)["stages"]["train"]["steps"] == 20
print("hot path:", "in Python" if hot_path.COMPILED is None else "compiled")
