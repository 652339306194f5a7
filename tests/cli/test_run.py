"""``epochmeter run``: the script is Python's own, whatever it does; what it trained is found all the same."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from profiler.config.paths import runs_path
from profiler.startup.sitecustomize import NEVER_NEEDED, OUR_NEEDS, is_launcher, what_runs
from profiler.storage.run_log import run_paths
from profiler.storage.run_reader import load
from support.processes import Answer, epochmeter, python

pytestmark = pytest.mark.slow  # each starts programs
MIRROR = """
import json, os, sys
print(json.dumps({"argv": sys.argv, "name": __name__, "file": __file__, "path": sys.path,
    "spec": repr(__spec__ and __spec__.name),
    "pythonpath": os.environ.get("PYTHONPATH"), "ours": [key for key in os.environ if key == "EPOCHMETER_RUN"],
    "main": sys.modules["__main__"].__dict__ is globals(), "flags": repr(sys.flags)}, sort_keys=True))
"""
TRAINING = """
import time
import torch
from torch import nn
from sklearn.datasets import load_digits

torch.manual_seed(0)
torch.set_num_threads(1)
digits = load_digits()
images, labels = torch.tensor(digits.data, dtype=torch.float32) / 16, torch.tensor(digits.target)
train = torch.utils.data.DataLoader(torch.utils.data.TensorDataset(images[:1000], labels[:1000]), batch_size=20, shuffle=True)
val = torch.utils.data.DataLoader(torch.utils.data.TensorDataset(images[1000:], labels[1000:]), batch_size=100)
model = nn.Sequential(nn.Linear(64, 256), nn.ReLU(), nn.Dropout(0.2), nn.Linear(256, 10))
optimizer = torch.optim.Adam(model.parameters())
criterion = nn.CrossEntropyLoss()
for epoch in range(3):
    model.train()
    for x, y in train:
        optimizer.zero_grad()
        loss = criterion(model(x), y)
        loss.backward()
        optimizer.step()
    model.eval()
    with torch.no_grad():
        right = sum(int((model(x).argmax(1) == y).sum()) for x, y in val)
    torch.save(model.state_dict(), "model.pt")
    print(epoch, loss.item(), right)
print(torch.rand(1).item())
"""


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    made = tmp_path / "work"
    made.mkdir()
    monkeypatch.chdir(made)
    return made


def recorded() -> list[Any]:
    return [load(path) for path in run_paths(runs_path())]


def both(script: str, *arguments: str, **environment: str) -> tuple[Answer, Answer]:
    """Run a script bare and measured, and return both outcomes."""
    Path("script.py").write_text(script, encoding="utf-8")
    return python("script.py", *arguments, **environment), epochmeter("run", "-q", "script.py", *arguments, **environment)


def both_as_installed(script: str, **environment: str) -> tuple[Answer, Answer]:
    """Like `both`, with the installed command, which does not look for modules in the working folder."""
    Path("script.py").write_text(script, encoding="utf-8")
    installed = str(Path(sys.executable).with_name("epochmeter"))
    return python("script.py", **environment), python(installed, "run", "-q", "script.py", **environment)


class TestTheScript:
    def test_sees_what_it_sees_without_us(self) -> None:
        bare, measured = both(MIRROR, "--lr", "0.1", "-q", "--", "--name", "x")
        assert measured == bare
        assert bare.json["argv"] == ["script.py", "--lr", "0.1", "-q", "--", "--name", "x"]

    def test_keeps_its_pythonpath(self, tmp_path: Path) -> None:
        bare, measured = both(MIRROR, PYTHONPATH=str(tmp_path))
        assert measured == bare
        assert bare.json["pythonpath"] == str(tmp_path)

    def test_as_a_module(self) -> None:
        package = Path("package")
        package.mkdir()
        (package / "__init__.py").touch()
        (package / "train.py").write_text(MIRROR, encoding="utf-8")
        measured = epochmeter("run", "-q", "-m", "package.train", "--lr", "1")
        assert measured == python("-m", "package.train", "--lr", "1")
        assert [run.name for run in recorded()] == ["train"]

    @pytest.mark.parametrize(
        "ending", ["sys.exit(7)", "sys.exit('bye')", "raise ValueError('no')", "os._exit(5)", "def f(): f()\nf()", "1 +"]
    )
    def test_ends_as_it_ends_without_us(self, ending: str) -> None:
        bare, measured = both(f"import os, sys\nprint('begun')\n{ending}\n")
        assert measured == bare
        assert bare.code

    @pytest.mark.skipif(sys.platform == "win32", reason="signals of POSIX")
    @pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
    def test_gets_its_signals_itself(self, number: signal.Signals) -> None:
        Path("script.py").write_text("import time\nprint('begun', flush=True)\ntime.sleep(60)\n", encoding="utf-8")
        ends = []
        for command in (["script.py"], ["-m", "profiler.cli", "run", "-q", "script.py"]):
            pipes: dict[str, Any] = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
            pipes["preexec_fn"] = lambda: signal.signal(signal.SIGINT, signal.SIG_DFL)  # a shell's background job ignores it
            with subprocess.Popen([sys.executable, *command], **pipes) as process:
                assert process.stdout is not None
                process.stdout.readline()
                time.sleep(0.5)  # it is asleep by then, and not still printing
                process.send_signal(number)
                ends.append((*process.communicate(), process.returncode))
        assert ends[0] == ends[1]
        assert [run.state for run in recorded()] == ["interrupted"]

    @pytest.mark.skipif(sys.platform == "win32", reason="signals of POSIX")
    @pytest.mark.parametrize(
        "how", [["-m", "profiler.cli", "run"], ["-m", "profiler.cli", "run", "-q", "--json", "r.json"], []]
    )
    def test_interrupt_ends_it_as_without_us(self, how: list[str]) -> None:
        measured = "from profiler import Profiler\nprof = Profiler('x')\nprof.start()\n" if not how else ""
        Path("script.py").write_text(f"{measured}import time\nprint('begun', flush=True)\ntime.sleep(60)\n", encoding="utf-8")
        pipes: dict[str, Any] = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
        pipes["preexec_fn"] = lambda: signal.signal(signal.SIGINT, signal.SIG_DFL)
        with subprocess.Popen([sys.executable, *how, "script.py"], **pipes) as process:
            assert process.stdout is not None
            process.stdout.readline()
            time.sleep(0.5)
            process.send_signal(signal.SIGINT)
            process.communicate()
        assert process.returncode == -signal.SIGINT

    def test_runs_beside_a_sitecustomize_of_its_own(self, tmp_path: Path) -> None:
        (tmp_path / "sitecustomize.py").write_text("import builtins\nbuiltins.mark = 'theirs'\n", encoding="utf-8")
        bare, measured = both("print(mark)\n", PYTHONPATH=str(tmp_path))
        assert measured == bare
        assert bare.out == "theirs\n"
        assert len(recorded()) == 1

    def test_starts_other_programs_that_are_not_measured(self) -> None:
        bare, measured = both("import subprocess, sys\nsubprocess.run([sys.executable, '-c', 'print(1)'])\n")
        assert (measured.code, measured.out) == (bare.code, bare.out)
        assert len(recorded()) == 1

    @pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
    def test_forks_without_a_second_report(self) -> None:
        Path("script.py").write_text("import os, sys\nif os.fork():\n    os.wait()\n", encoding="utf-8")
        assert epochmeter("run", "script.py").err.count("verdict") == 1
        assert [run.state for run in recorded()] == ["finished"]


class TestTheReport:
    def test_script_without_torch_has_time_and_hardware(self) -> None:
        Path("script.py").write_text("import time\nprint(sum(range(10)))\ntime.sleep(0.5)\n", encoding="utf-8")
        answer = epochmeter("run", "--name", "my words", "script.py")
        assert answer.out == "45\n"
        assert answer.err.splitlines()[1].startswith("my words  run ")
        assert "epochmeter report" in answer.err
        run = recorded()[0]
        assert run.duration_ns > 0
        assert run.hardware.cpu

    @pytest.mark.slow
    @pytest.mark.parametrize(
        ("script", "code", "says"),
        [
            ("print(1)\n", 0, "the script did not import torch"),
            ("import torch\nprint(torch.ones(2).sum())\n", 0, "neither a DataLoader nor an optimizer's step was seen"),
            ("import torch\nraise SystemExit(3)\n", 3, "neither a DataLoader nor an optimizer's step was seen"),
        ],
    )
    def test_run_without_a_step_says_why(self, script: str, code: int, says: str) -> None:
        Path("script.py").write_text(script, encoding="utf-8")
        answer = epochmeter("run", "script.py")
        shown = " ".join(answer.err.split())
        assert answer.code == code and says in shown and "next " in shown
        assert "verdict unknown" in shown.replace("  ", " ")

    @pytest.mark.slow
    def test_failure_before_a_step_is_in_the_report(self) -> None:
        Path("script.py").write_text("import torch\ntorch.ones(2) @ torch.ones(3)\n", encoding="utf-8")
        assert epochmeter("run", "script.py").code == 1
        shown = " ".join(epochmeter("report").out.split())
        assert "the script failed before its first step" in shown and "see its own error message" in shown

    def test_quiet_says_nothing(self) -> None:
        _, measured = both("print(1)\n")
        assert (measured.out, measured.err) == ("1\n", "")

    def test_report_survives_a_closed_stderr(self) -> None:
        bare, measured = both("import sys\nprint(1)\nsys.stderr.close()\n")
        assert measured == bare


class TestWhatCannotRun:
    def test_a_script_that_is_not_there(self) -> None:
        answer = epochmeter("run", "nowhere.py")
        assert answer.code == 2
        assert answer.err == "epochmeter: there is no script 'nowhere.py' here, and no program of that name on the PATH.\n"

    @pytest.mark.parametrize(
        "name",
        [
            *(
                "profiler",
                "exporters",
                "filelock",
                "requests",
                "psutil",
                "platformdirs",
                "rich",
                "pynvml",
                "cpuinfo",
                "urllib3",
            ),
            *("logging", "typing", "random", "json", "types", "contextlib", "pathlib", "importlib", "secrets", "queue", "grpc"),
        ],
    )
    def test_script_imports_what_plain_python_gives(self, name: str) -> None:
        path = Path(f"{name}.py") if len(name) % 2 else Path(name, "__init__.py")  # a module, or a package
        path.parent.mkdir(exist_ok=True)
        path.write_text("MINE = 'mine'\n", encoding="utf-8")
        bare, measured = both_as_installed(f"import {name}\nprint(getattr({name}, 'MINE', 'theirs'))\n")
        assert (measured.code, measured.out) == (bare.code, bare.out)
        if "mine" in bare.out:
            assert measured.err == (
                f"epochmeter: nothing is measured: beside the script is a module {name!r}, "
                "which hides one that is needed here; rename it\n"
            )

    def test_scripts_own_sitecustomize_is_its_own(self) -> None:
        Path("sitecustomize.py").write_text("MINE = 'mine'\n", encoding="utf-8")
        bare, measured = both_as_installed("import sitecustomize\nprint(sitecustomize.MINE)\n")
        assert (measured.code, measured.out, measured.err) == (bare.code, bare.out, "") == (0, "mine\n", "")
        assert len(run_paths(runs_path())) == 1

    def test_other_names_beside_a_script_hide_nothing(self) -> None:
        for name in ("test", "train", "model", "utils", "code", "profile"):
            Path(f"{name}.py").write_text("raise SystemExit('imported')\n", encoding="utf-8")
        Path("json").mkdir()  # no package: Python passes it over, too
        _, measured = both_as_installed("import json\nprint(json.dumps(1))\n")
        assert (measured.out, measured.err) == ("1\n", "")
        assert len(run_paths(runs_path())) == 1

    def test_every_module_we_load_is_looked_for(self) -> None:
        """A run that sends, shows its report and asks every probe loads no module whose name beside a script goes unseen."""
        script = "import atexit, sys\natexit.register(lambda: print(*sys.modules))\n"
        bare, measured = both_as_installed(script, EPOCHMETER_EXPORTER="otlp", EPOCHMETER_OTLP_ENDPOINT="http://127.0.0.1:9")
        loaded = {name.partition(".")[0] for name in set(measured.out.split()) - set(bare.out.split())}
        needs = OUR_NEEDS | (sys.stdlib_module_names - NEVER_NEEDED)
        assert {name for name in loaded if not name.startswith("_")} - {"cython_runtime", "sitecustomize"} <= needs

    def test_a_name_that_cannot_be_used(self) -> None:
        Path("script.py").touch()
        answer = epochmeter("run", "--name", " ", "script.py")
        assert answer.code == 2
        assert "1 to 200 characters" in answer.err

    def test_no_script_at_all(self) -> None:
        assert epochmeter("run").code == 2


class TestTraining:
    def test_is_found_whole_and_changes_nothing(self) -> None:
        pytest.importorskip("torch")
        bare, measured = both(TRAINING)
        assert measured == bare  # the same losses, to the last digit, and the same random number afterwards
        run = recorded()[0]
        assert [(epoch.index, epoch.inferred) for epoch in run.epochs] == [(0, True), (1, True), (2, True)]
        for epoch in run.epochs:
            train, val = epoch.stages["train"], epoch.stages["val"]
            assert (train.steps, train.samples, train.partial_passes) == (50, 1000, 0)
            assert (val.steps, val.samples) == (8, 797)
            assert train.phases[("forward",)].count == train.phases[("backward",)].count == 50
            assert train.phases[("optimizer",)].count == 50
            assert ("backward",) not in val.phases
            assert epoch.phases[("checkpoint",)].count == 1
        unexplained = [epoch.stages["train"].other_ns / epoch.stages["train"].duration_ns for epoch in run.epochs]
        assert min(unexplained) >= 0
        assert min(unexplained) < 0.05  # 95 % of the loop is explained, where no other program took the processor meanwhile
        assert not run.notes

    def test_jit_modules_and_checkpoints_between_steps(self) -> None:
        pytest.importorskip("torch")
        Path("script.py").write_text(
            """
import warnings
warnings.simplefilter("ignore")
import torch
from torch import nn
model = nn.Sequential(nn.Linear(8, 8), nn.ReLU(), nn.Linear(8, 1))
optimizer = torch.optim.SGD(model.parameters(), lr=1e-3)
scripted = torch.jit.script(model)
traced = torch.jit.trace(model, torch.ones(1, 8))
for step in range(10):
    optimizer.zero_grad()
    model(torch.randn(4, 8)).sum().backward()
    optimizer.step()
    torch.jit.script(model)
    torch.save(model.state_dict(), "model.pt")
""",
            encoding="utf-8",
        )
        assert epochmeter("run", "-q", "script.py") == Answer(0, "", "")
        (run,) = recorded()
        stage = run.epochs[0].stages["train"]
        assert (stage.steps, stage.phases[("checkpoint",)].count) == (10, 10)
        assert stage.other_ns >= 0
        assert not run.notes

    def test_loop_that_never_calls_the_model(self) -> None:
        pytest.importorskip("torch")
        Path("script.py").write_text(
            """
import torch
from torch import nn

class Agent(nn.Module):
    def __init__(self):
        super().__init__()
        self.actor, self.critic = nn.Linear(8, 2), nn.Linear(8, 1)
    def value(self, x):
        return self.actor(x).sum() + self.critic(x).sum()

agent = Agent()
optimizer = torch.optim.SGD(agent.parameters(), lr=1e-3)
for step in range(40):
    optimizer.zero_grad()
    agent.value(torch.randn(4, 8)).backward()
    optimizer.step()
""",
            encoding="utf-8",
        )
        assert epochmeter("run", "-q", "script.py") == Answer(0, "", "")
        stage = recorded()[0].epochs[0].stages["train"]
        assert stage.steps == 40
        assert stage.phases[("forward",)].count >= 2 * 36
        assert stage.other_ns < 0.2 * stage.duration_ns


@pytest.mark.parametrize(
    ("arguments", "found"),
    [
        (["python", "train.py", "-m", "x"], ("script", "train.py")),
        (["python", "-u", "-m", "torch.distributed.run", "train.py"], ("module", "torch.distributed.run")),
        (["python", "-X", "dev", "-W", "error", "-O", "/bin/torchrun"], ("script", "/bin/torchrun")),
        (["python", "-um", "package"], ("module", "package")),
        (["python", "-c", "print(1)"], ("", "")),
        (["python", "-"], ("", "")),
        (["python"], ("", "")),
    ],
)
def test_what_a_python_was_started_for(arguments: list[str], found: tuple[str, str]) -> None:
    assert what_runs(arguments) == found


def test_launchers_are_known() -> None:
    assert is_launcher("script", "/usr/bin/torchrun")
    assert is_launcher("module", "torch.distributed.run")
    assert is_launcher("script", "accelerate.exe")
    assert not is_launcher("script", "train.py")
    assert not is_launcher("module", "package.train")
