"""The recipes for Slurm, Kubernetes and GitHub, run as they stand: stand-ins of their programs begin the same processes."""

from __future__ import annotations

import contextlib
import itertools
import os
import re
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from profiler.errors import RunLogError
from profiler.storage.run_log import run_paths
from profiler.storage.run_reader import load
from support.pages import ROOT
from support.processes import can_connect, epochmeter, wait_for
from support.sinks import serving

RECIPES = (ROOT / "docs" / "recipes.md").read_text("utf-8")
FIRST = ROOT / "examples" / "first"
SRUN = f"""#!{sys.executable}
import os, subprocess, sys
nodes, per_node = 2, 2
tasks = [
    subprocess.Popen(
        sys.argv[1:],
        env=os.environ
        | dict(SLURM_PROCID=str(rank), SLURM_LOCALID=str(rank % per_node), SLURM_NODEID=str(rank // per_node)),
    )
    for rank in range(nodes * per_node)
]
print(*(task.pid for task in tasks), file=open("pids", "w"), flush=True)
sys.exit(max(abs(task.wait()) for task in tasks))
"""
SCONTROL = "#!/bin/sh\necho 127.0.0.1\necho 127.0.0.2\n"
GH = '#!/bin/sh\necho "$@" > gh.txt\n'


def block(heading: str, language: str) -> str:
    """Return the first block of a language below a heading."""
    section = RECIPES.partition(f"\n## {heading}\n")[2].partition("\n## ")[0]
    found = re.search(rf"```{language}\n(.*?)```", section, re.DOTALL)
    assert found is not None, heading
    return found[1]


@pytest.fixture
def programs(tmp_path: Path) -> dict[str, str]:
    """Return an environment that finds our commands, and the stand-ins in a folder of their own."""
    (tmp_path / "bin").mkdir()
    for name, text in (("srun", SRUN), ("scontrol", SCONTROL), ("gh", GH)):
        program = tmp_path / "bin" / name
        program.write_text(text)
        program.chmod(0o700)
    return {
        **os.environ,
        "PATH": os.pathsep.join((str(tmp_path / "bin"), str(Path(sys.executable).parent), os.environ["PATH"])),
    }


@contextlib.contextmanager
def started(command: list[str], folder: Path, environment: dict[str, str]) -> Iterator[subprocess.Popen[bytes]]:
    """Start a command, and end its processes at the end of the block: no test may leave one behind."""
    process = subprocess.Popen(command, cwd=folder, env=environment, stdout=subprocess.DEVNULL, start_new_session=True)
    try:
        yield process
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait(10)


def are_training(home: Path, runs: int) -> bool:
    """Return True if there are so many runs, and steps of training in each."""
    try:
        found = [load(path).whole().stages.get("train") for path in run_paths(home / "runs")]
    except RunLogError:  # one has no line yet
        return False
    return len(found) == runs and all(stage is not None and stage.steps for stage in found)


def listed(home: Path) -> list[dict[str, Any]]:
    runs: list[dict[str, Any]] = epochmeter("runs", "--json", EPOCHMETER_HOME=str(home)).json
    return runs


pytestmark = [
    pytest.mark.slow,
    pytest.mark.timeout(300),
    pytest.mark.skipif(os.name != "posix", reason="the recipes are for POSIX shells"),
]


def test_slurm_gives_one_job_with_nodes(programs: dict[str, str], tmp_path: Path) -> None:
    endless = (FIRST / "ranks.py").read_text().replace("range(3)", "range(10**6)")
    (tmp_path / "train.py").write_text(endless)
    (tmp_path / "job.sh").write_text(block("Slurm", "sbatch"))
    number = next(number for number in itertools.count(os.getpid()) if not can_connect(20_000 + number % 20_000))
    slurm = {"SLURM_JOB_ID": str(number), "SLURM_JOB_NODELIST": "a,b", "SLURM_CPUS_PER_TASK": "8"}
    slurm |= {"HOME": str(tmp_path), "SLURM_NTASKS": "4", "SLURM_NTASKS_PER_NODE": "2"}
    home = tmp_path / "epochmeter"
    with started(["bash", "job.sh"], tmp_path, {**programs, **slurm}) as job:
        wait_for(lambda: are_training(home, 4), 120)
        for pid in (tmp_path / "pids").read_text().split():  # as Slurm ends each task at the time limit
            os.kill(int(pid), signal.SIGKILL)
        assert job.wait(60) != 0
    assert {(run["rank"], run["world_size"], run["state"]) for run in listed(home)} == {
        (rank, 4, "interrupted") for rank in range(4)
    }
    fleet = str(tmp_path / "fleet")
    answer = epochmeter("fleet", "load", str(home / "runs"), "--into", fleet, "--json")
    assert answer.code == 0 and answer.json["logs"] == 4, answer.err
    query = tmp_path / "nodes.sql"
    query.write_text("SELECT DISTINCT job, rank, node FROM fleet_epoch ORDER BY rank")
    rows = epochmeter("fleet", "ask", "--sql", str(query), "--from", fleet, "--json").json
    assert [(row["rank"], row["node"]) for row in rows] == [(0, 0), (1, 0), (2, 1), (3, 1)]
    assert len({row["job"] for row in rows}) == 1 and rows[0]["job"]


def test_kubernetes_keeps_what_a_preempted_pod_did(programs: dict[str, str], tmp_path: Path) -> None:
    pod = yaml.safe_load(block("Kubernetes", "yaml"))["spec"]["template"]["spec"]
    (container,) = pod["containers"]
    assert pod["shareProcessNamespace"] is True  # process 1 of a container ignores SIGTERM
    assert {mount["mountPath"] for mount in container["volumeMounts"]} == {"/runs"}
    home = tmp_path / "runs" / "epochmeter"
    (tmp_path / "runs").mkdir()
    (tmp_path / "runs").chmod(0o2775)  # as a volume is whose group is the pod's
    given = {entry["name"]: entry["value"].replace("/runs", str(tmp_path / "runs")) for entry in container["env"]}
    (tmp_path / "train.py").write_text((FIRST / "train.py").read_text().replace("range(8)", "range(10**6)"))
    sink, end = serving()
    try:
        environment = {**programs, **given, "EPOCHMETER_OTLP_ENDPOINT": sink.url}
        for pods in (1, 2):  # the second takes the place of the first, on the same volume
            with started(container["command"], tmp_path, environment) as process:
                wait_for(lambda: are_training(home, pods), 120)  # noqa: B023  # it ends here
                process.send_signal(signal.SIGTERM)
                process.wait(pod["terminationGracePeriodSeconds"])
        assert [run["state"] for run in listed(home)] == ["interrupted", "interrupted"]
    finally:
        end()
    assert any(b"k8s.job.name" in one.content and b"epochmeter.stage.steps" in one.content for one in sink.received)


def test_github_job_comments_on_a_slower_change(programs: dict[str, str], tmp_path: Path) -> None:
    job = yaml.safe_load(block("A pull request that becomes slower", "yaml"))["jobs"]["speed"]
    repository, summary = tmp_path / "repository", tmp_path / "summary.md"
    repository.mkdir()

    def shell(command: str, **more: str) -> int:
        environment = {**programs, "GITHUB_STEP_SUMMARY": str(summary), **more}
        return subprocess.run(["bash", "-e", "-c", command], cwd=repository, env=environment, timeout=120).returncode

    quick = (FIRST / "train.py").read_text().replace('"--batched" in sys.argv', "True")
    (repository / "train.py").write_text(quick)
    assert not shell("git init -q -b main . && git add train.py && git -c user.name=a -c user.email=a@b commit -qm first")
    slow = quick.replace("for x, y in loader:\n", "for x, y in loader:\n        time.sleep(0.05)\n")
    (repository / "train.py").write_text(slow.replace("import sys\n", "import sys\nimport time\n"))
    assert not shell("git checkout -q -b change && git -c user.name=a -c user.email=a@b commit -qam slower")
    values = {"github.base_ref": "main", "github.event.number": "7", "github.token": "none"}
    values["github.workspace"] = str(repository)

    def filled(text: str) -> str:
        return re.sub(r"\$\{\{ ([a-z_.]+) \}\}", lambda found: values[found[1]], text)

    home, codes = {name: filled(text) for name, text in job["env"].items()}, []
    for step in job["steps"]:
        if "uses" in step:
            assert step["uses"].startswith("actions/checkout@")
            codes.append(shell(f"git checkout -q {filled(step['with'].get('ref', 'change'))}"))
        elif not step["run"].startswith("pip ") and (not any(codes) or step.get("if", "").startswith("always()")):
            codes.append(shell(filled(step["run"]), **home))
    assert codes == [0, 0, 0, 0, 1, 0]  # the comparison fails, and the comment comes all the same
    assert (repository / "gh.txt").read_text() == "pr comment 7 --body-file comparison.md\n"
    assert "slower" in summary.read_text() and summary.read_text() == (repository / "comparison.md").read_text()
