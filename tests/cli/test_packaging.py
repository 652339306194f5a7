"""A wheel, built and installed into an empty environment, works without the source beside it."""

from __future__ import annotations

import subprocess
import sys
import venv
import zipfile
from pathlib import Path

import pytest

SOURCE = Path(__file__).parents[2]
SMOKE = """
import json, subprocess, sys
from profiler import Profiler, settings
import exporters
with Profiler("smoke") as prof:
    for _ in prof.epochs(2):
        for _ in prof.train(range(10)):
            with prof.phase("forward"):
                pass
assert "site-packages" in exporters.__file__, exporters.__file__
assert settings["sync"] is True
report = subprocess.run([sys.argv[1], "report", "--format", "json"], capture_output=True, text=True, check=True).stdout
assert json.loads(report)["stages"]["train"]["steps"] == 20
print("works")
"""


@pytest.mark.proof
@pytest.mark.timeout(300)
def test_built_wheel_works_without_source(tmp_path: Path, home: Path) -> None:
    subprocess.run([sys.executable, "-m", "build", "--wheel", "--outdir", tmp_path, SOURCE], check=True, capture_output=True)
    (wheel,) = tmp_path.glob("epochmeter-*.whl")
    names = zipfile.ZipFile(wheel).namelist()
    assert {"profiler/py.typed", "exporters/py.typed", "profiler/cli/__init__.py"} <= set(names)
    assert not [name for name in names if name.startswith(("tests/", "benchmarks/"))]
    venv.create(tmp_path / "env", with_pip=True)
    scripts = tmp_path / "env" / ("Scripts" if sys.platform == "win32" else "bin")
    install = [scripts / "python", "-m", "pip", "install", "--quiet", "-c", SOURCE / "constraints.txt", wheel]
    subprocess.run(install, check=True, capture_output=True, cwd=tmp_path)
    script = tmp_path / "smoke.py"
    script.write_text(SMOKE)
    answer = subprocess.run([scripts / "python", script, scripts / "epochmeter"], capture_output=True, text=True, cwd=tmp_path)
    assert (answer.returncode, answer.stdout.strip()) == (0, "works"), answer.stderr
