"""The module that Python runs before the script of ``epochmeter run``, because its folder is on the path.

It first restores what was changed for this: the path, the environment, and the ``sitecustomize`` that would have run
otherwise. A launcher of ranks (torchrun) is left alone, and the processes it starts are measured instead.

The rule it keeps: a script that cannot be measured runs all the same; one line on stderr says why.
"""

from __future__ import annotations

import importlib.machinery
import importlib.util
import json
import os
import sys
from pathlib import PurePath

REQUEST = "EPOCHMETER_RUN"
LAUNCHERS = ("torchrun", "accelerate", "deepspeed", "horovodrun")
LAUNCHER_MODULES = ("torch.distributed.run", "torch.distributed.launch", "accelerate.commands.launch", "deepspeed.launcher")
WITH_VALUE = ("-X", "-W", "--check-hash-based-pycs")


def what_runs(arguments: list[str]) -> tuple[str, str]:
    """Return the target of this Python: ("script", its path), ("module", its name), or ("", "") for anything else."""
    position = 1
    while position < len(arguments):
        word = arguments[position]
        if not word.startswith("-") or word == "-":
            return ("script", word) if word != "-" else ("", "")
        if not word.startswith("--") and word.endswith(("m", "c")) and word not in WITH_VALUE:
            following = arguments[position + 1 : position + 2]
            return ("module", following[0]) if word.endswith("m") and following else ("", "")
        position += 2 if word in WITH_VALUE else 1
    return "", ""


def is_launcher(kind: str, target: str) -> bool:
    """Return True if this process only starts the ranks."""
    return PurePath(target).stem in LAUNCHERS if kind == "script" else target.startswith(LAUNCHER_MODULES)


def begin() -> None:
    """Measure this process, if it is the requested one."""
    text = os.environ.get(REQUEST)
    kind, target = what_runs(sys.orig_argv)
    if text is None or is_launcher(kind, target):
        return
    request = json.loads(text)
    del os.environ[REQUEST]  # the children of this process are not measured
    if request["pythonpath"] is None:
        os.environ.pop("PYTHONPATH", None)
    else:
        os.environ["PYTHONPATH"] = request["pythonpath"]
    if kind:
        try:
            from profiler.session.launch import measure
        except ImportError:
            print("epochmeter: not installed for the Python that runs this; nothing is measured", file=sys.stderr)  # noqa: T201
            return
        measure(kind, target, request)


def run_the_other() -> None:
    """Run the ``sitecustomize`` that this one hides, if there is one."""
    here = os.path.dirname(os.path.abspath(__file__))  # noqa: PTH100, PTH120
    sys.path[:] = [entry for entry in sys.path if os.path.abspath(entry) != here]  # noqa: PTH100
    spec = importlib.machinery.PathFinder.find_spec("sitecustomize")
    if spec is not None and spec.loader is not None:
        module = importlib.util.module_from_spec(spec)
        sys.modules["sitecustomize"] = module
        spec.loader.exec_module(module)


if __name__ == "sitecustomize":
    try:
        run_the_other()
    finally:
        begin()
