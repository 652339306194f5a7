"""A wheel, built and installed into an empty environment, works without the source beside it, and without a compiler."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import sysconfig
import venv
import zipfile
from pathlib import Path

import pytest

SOURCE = Path(__file__).parents[2]
SMOKE = SOURCE / "tests" / "support" / "wheel_smoke.py"
MADE = {".so", ".pyd", ".pyc", ".c"}  # built here, or the source of it
COPIED = ("setup.py", "pyproject.toml", "MANIFEST.in", "README.md", "LICENSE", "epochmeter", "profiler", "exporters")


@pytest.fixture
def source(tmp_path: Path) -> Path:
    """Return a copy of the source without anything built, because a build leaves files beside what it builds."""
    folder = tmp_path / "source"
    folder.mkdir()
    for name in COPIED:
        if (SOURCE / name).is_dir():
            shutil.copytree(SOURCE / name, folder / name, ignore=shutil.ignore_patterns("*.so", "*.pyd", "__pycache__"))
        else:
            shutil.copy(SOURCE / name, folder / name)
    return folder


def build(source: Path, into: Path, *options: str, **environment: str) -> Path:
    command = [sys.executable, "-m", "build", *options, "--outdir", into, source]
    done = subprocess.run(command, capture_output=True, text=True, env={**os.environ, **environment})
    assert done.returncode == 0, done.stdout + done.stderr
    (made,) = (path for path in into.iterdir() if path.suffix == ".whl")
    return made


def smoke(wheel: Path, folder: Path) -> str:
    """Install a wheel into an empty environment, and return the last line of the smoke test there."""
    venv.create(folder / "env", with_pip=True)
    python = folder / "env" / ("Scripts" if sys.platform == "win32" else "bin") / "python"
    install = [python, "-m", "pip", "install", "--quiet", "-c", SOURCE / "constraints.txt", wheel]
    subprocess.run(install, check=True, capture_output=True, cwd=folder)
    shutil.copy(SMOKE, folder / "smoke.py")
    answer = subprocess.run([python, folder / "smoke.py"], capture_output=True, text=True, cwd=folder)
    assert answer.returncode == 0, answer.stderr
    return answer.stdout.splitlines()[-1]


def wanted(source: Path) -> set[str]:
    files = (path for room in ("epochmeter", "profiler", "exporters") for path in (source / room).rglob("*") if path.is_file())
    return {path.relative_to(source).as_posix() for path in files if path.suffix not in MADE}


@pytest.mark.proof
@pytest.mark.timeout(300)
@pytest.mark.skipif(shutil.which("cc") is None, reason="there is no compiler here")
@pytest.mark.skipif(not Path(sysconfig.get_path("include"), "Python.h").exists(), reason="Python's headers are not here")
def test_wheel_from_sdist_works_without_source(source: Path, tmp_path: Path, home: Path) -> None:
    wheel = build(source, tmp_path / "dist")  # the source distribution, and the wheel from that
    names = {name for name in zipfile.ZipFile(wheel).namelist() if ".dist-info/" not in name}
    compiled = {name for name in names if Path(name).stem.startswith("compiled") and Path(name).suffix in (".so", ".pyd")}
    assert len(compiled) == 1 and "-cp310-abi3-" in wheel.name  # one build for every later Python
    assert names - compiled == wanted(source)
    assert smoke(wheel, tmp_path) == "hot path: compiled"


@pytest.mark.proof
@pytest.mark.timeout(300)
@pytest.mark.skipif(sys.platform == "win32", reason="CC chooses no compiler there")
def test_wheel_without_compiler_works_in_python(source: Path, tmp_path: Path, home: Path) -> None:
    wheel = build(source, tmp_path / "dist", "--wheel", CC="/bin/false")
    assert {name for name in zipfile.ZipFile(wheel).namelist() if ".dist-info/" not in name} == wanted(source)
    assert smoke(wheel, tmp_path) == "hot path: in Python"
