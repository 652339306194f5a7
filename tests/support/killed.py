"""Runs a training loop that is killed (SIGKILL) before its n-th step on disk or on the wire, for every n there is.

    python killed.py HOME TARGET [EVERY]

A step is a call by which the run log, the outbox or the log of what was sent changes something on disk, and either side
of handing a payload to the network. Each loop is a process of its own, forked from this one, which has only loaded what
it needs. With EVERY, it is killed before each so manieth step. After each death another process looks after what is left,
as the next run would. One line of JSON a death: how many epochs the run's log has, what is still in the outbox, and
what was given up.
"""

from __future__ import annotations

import importlib
import itertools
import json
import os
import signal
import sys
from pathlib import Path
from typing import Any

from exporters import courier, ga, otlp, outbox
from profiler import Profiler
from profiler.config import folder as door
from profiler.config.folder import Folder
from profiler.hardware import PROBES, module_of
from profiler.sending.flush import flush
from profiler.storage import run_log as runlog
from profiler.storage.run_reader import load

CHANGES = {"open", "write", "fsync", "replace", "unlink", "link", "truncate"}
EPOCHS = 3


class Steps:
    """The ``os`` module, with a death before one of its calls."""

    def __init__(self, fatal: int) -> None:
        self.fatal = fatal
        self.done = 0

    def __getattr__(self, name: str) -> Any:
        found = getattr(os, name)
        if name not in CHANGES:
            return found

        def step(*arguments: Any, **more: Any) -> Any:
            if name != "open" or arguments[1] & os.O_CREAT:  # opening to read changes nothing
                self.count()
            return found(*arguments, **more)

        return step

    def count(self) -> None:
        self.done += 1
        if self.done == self.fatal:
            os.kill(os.getpid(), signal.SIGKILL)


def train(steps: Steps) -> None:
    for module in (door, runlog):
        module.os = steps  # type: ignore[attr-defined]
    for transport in (otlp.Otlp, ga.Ga):
        transport.send = counted(transport.send, steps)  # type: ignore[method-assign]
    with Profiler("killed", interval=3600) as prof:
        for _ in prof.epochs(EPOCHS):
            list(prof.train(range(3)))
            prof.session.export()  # as the sampling thread does every `export_interval`


def counted(send: Any, steps: Steps) -> Any:
    def both_sides(self: Any, body: bytes) -> Any:
        steps.count()
        answer = send(self, body)
        steps.count()
        return answer

    return both_sides


def in_a_process(function: Any, *arguments: Any) -> int:
    """Its exit status, or minus the signal that ended it."""
    child = os.fork()
    if child == 0:
        code = 1
        try:
            function(*arguments)
            code = 0
        finally:
            sys.stdout.flush()
            os._exit(code)
    status = os.waitpid(child, 0)[1]
    return -os.WTERMSIG(status) if os.WIFSIGNALED(status) else os.WEXITSTATUS(status)


def look_after(home: Path, fatal: int) -> None:
    outbox.OPEN_GRACE_S = 0.0
    done = flush()
    again = flush()
    paths = runlog.run_paths(home / "runs")
    runs = {runlog.run_id(path): len(load(path).epochs) for path in paths if path.stat().st_size}
    box = outbox.Outbox(Folder(home / "outbox"))
    told = {"fatal": fatal, "runs": runs, "left": again.left, "reasons": done.reasons + again.reasons, "dropped": box.dropped()}
    kept = [str(path.relative_to(home)) for path in (home / "outbox").rglob("*") if path.is_file()]
    print(json.dumps({**told, "kept": kept}))


def main() -> None:
    folder, target, every = Path(sys.argv[1]), sys.argv[2], int((sys.argv[3:] or ["1"])[0])
    os.environ["EPOCHMETER_EXPORTER"] = target
    for name in PROBES:
        importlib.import_module(module_of(name))
    assert courier
    for fatal in itertools.count(1, every):
        home = folder / str(fatal)
        os.environ["EPOCHMETER_HOME"] = str(home)
        status = in_a_process(train, Steps(fatal))
        assert status in (0, -signal.SIGKILL), status
        in_a_process(look_after, home, fatal)
        if status == 0:
            return


if __name__ == "__main__":
    main()
