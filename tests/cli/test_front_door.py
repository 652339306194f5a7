"""``import epochmeter``: the same objects as `profiler`, beside a ``profiler.py`` of the user's, and as a command."""

from __future__ import annotations

import importlib
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import pytest

import epochmeter
import profiler
from support.processes import python

SCRIPT = """
from epochmeter import Profiler, settings

with Profiler("mine") as prof:
    for _ in prof.train(range(3)):
        pass
print(prof.summary.stages["train"]["steps"], settings["exporter"])
"""


def test_names_are_the_same_objects() -> None:
    assert epochmeter.__all__ == profiler.__all__ and epochmeter.__version__ == profiler.__version__
    for name in profiler.__all__:
        assert getattr(epochmeter, name) is getattr(profiler, name)
    with pytest.raises(AttributeError, match="nothing_such"):
        _ = epochmeter.nothing_such


@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # of the frameworks
@pytest.mark.parametrize(
    ("module", "framework"),
    [
        ("testing", "opentelemetry"),
        ("fleet", "profiler"),
        ("adapters.ignite_handler", "ignite"),
        ("adapters.lightning_callback", "lightning"),
        ("adapters.transformers_callback", "transformers"),
        ("adapters.ultralytics_callback", "ultralytics"),
    ],
)
def test_submodules_hand_names_on(module: str, framework: str) -> None:
    pytest.importorskip(framework)
    ours, theirs = importlib.import_module(f"epochmeter.{module}"), importlib.import_module(f"profiler.{module}")
    hands_on_all_names(ours, theirs)


def test_commands_to_mount_are_handed_on() -> None:
    hands_on_all_names(importlib.import_module("epochmeter.mount"), importlib.import_module("profiler.cli.mount"))


def hands_on_all_names(ours: ModuleType, theirs: ModuleType) -> None:
    assert ours.__all__
    for name in ours.__all__:
        assert getattr(ours, name) is getattr(theirs, name)


def test_every_adapter_is_handed_on() -> None:
    adapters = Path(profiler.__file__).parent / "adapters"
    for_users = {path.stem for path in adapters.glob("*.py")} - {"__init__", "driver", "events"}
    assert {path.stem for path in (Path(epochmeter.__file__).parent / "adapters").glob("*.py")} == for_users | {"__init__"}


def test_import_loads_nothing_heavy() -> None:
    code = "import sys, epochmeter; print(sorted({'torch', 'numpy', 'psutil', 'opentelemetry', 'pathlib'} & set(sys.modules)))"
    assert (
        python("-S", "-c", f"import sys; sys.path.insert(0, {str(Path(profiler.__file__).parents[1])!r}); {code}").out == "[]\n"
    )


def test_a_profiler_of_the_user_hides_nothing(tmp_path: Path) -> None:
    (tmp_path / "profiler.py").write_text("raise SystemExit('this is the file of the user')\n")
    script = tmp_path / "train.py"
    script.write_text(SCRIPT)
    answer = python(str(script))
    assert (answer.code, answer.out) == (0, "3 none\n"), answer.err


def test_a_loaded_namesake_is_told(tmp_path: Path) -> None:
    (tmp_path / "profiler.py").write_text("def profile(): pass\n")
    script = tmp_path / "train.py"
    script.write_text("import profiler\n" + SCRIPT)
    answer = python(str(script))
    assert answer.code == 1 and str(tmp_path / "profiler.py") in answer.err and "rename that file" in answer.err


def test_module_is_the_command() -> None:
    done = subprocess.run([sys.executable, "-m", "epochmeter", "runs", "--json"], capture_output=True, text=True)
    assert (done.returncode, done.stdout.strip()) == (0, "[]")
