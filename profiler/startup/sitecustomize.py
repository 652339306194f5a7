"""The module that Python runs before the script of ``epochmeter run``, because its folder is on the path.

It first restores everything that was changed for this: the path, the environment, and the ``sitecustomize`` that would have run
otherwise. A launcher of ranks (torchrun) is left alone, and the processes it starts are measured instead.

The rules it keeps: a script that cannot be measured runs all the same; one line on stderr says why. A script imports what
plain Python would give it: where a module beside it has the name of one that we need, nothing of ours is loaded. So nothing
but ``os`` and ``sys``, which Python has loaded, is imported before that is known.
"""

from __future__ import annotations

import os
import sys

REQUEST = "EPOCHMETER_RUN"
LAUNCHERS = ("torchrun", "accelerate", "deepspeed", "horovodrun")
LAUNCHER_MODULES = ("torch.distributed.run", "torch.distributed.launch", "accelerate.commands.launch", "deepspeed.launcher")
WITH_VALUE = ("-X", "-W", "--check-hash-based-pycs")
OUR_NEEDS = {  # beside the standard library, what we or what we need may import
    *("profiler", "exporters", "filelock", "platformdirs", "psutil", "pynvml", "cpuinfo", "amdsmi", "typer", "click", "rich"),
    *("requests", "urllib3", "certifi", "charset_normalizer", "chardet", "idna", "simplejson", "socks", "brotli", "zstandard"),
    *("OpenSSL", "cryptography", "opentelemetry", "google", "grpc", "prometheus_client", "sentry_sdk", "typing_extensions"),
    *("pygments", "markdown_it", "mdurl", "shellingham", "annotated_doc", "attr", "backports"),
}
NEVER_NEEDED = {  # of the standard library
    *("antigravity", "this", "turtle", "turtledemo", "tkinter", "idlelib", "lib2to3", "code", "codeop", "cmd", "pdb", "bdb"),
    *("profile", "cProfile", "pstats", "trace", "timeit", "doctest", "sched", "shelve", "chunk", "pipes", "wave", "imp"),
    *("colorsys", "sndhdr", "imghdr", "cgi", "cgitb", "mailbox", "mailcap", "nntplib", "poplib", "imaplib", "smtplib", "smtpd"),
    *("telnetlib", "ftplib", "xdrlib", "aifc", "sunau", "audioop", "crypt", "curses", "graphlib", "modulefinder", "pyclbr"),
    *("symtable", "tabnanny", "compileall", "py_compile", "zipapp", "venv", "ensurepip", "xmlrpc", "plistlib", "filecmp"),
}
SUFFIXES = (".py", ".pyc", ".so", ".pyd")


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
    name = os.path.splitext(os.path.basename(target))[0]  # noqa: PTH119, PTH122
    return name in LAUNCHERS if kind == "script" else target.startswith(LAUNCHER_MODULES)


def hiding(kind: str, target: str) -> str:
    """Return the name of a module beside the script that hides one that we need, or ""."""
    if getattr(sys.flags, "safe_path", False) or sys.flags.isolated:
        return ""  # the script's folder is not on the path
    folder = "." if kind == "module" else os.path.realpath(target)
    if kind == "script" and not os.path.isdir(folder):  # noqa: PTH112
        folder = os.path.dirname(folder)  # noqa: PTH120
    try:
        entries = sorted(os.listdir(folder))  # noqa: PTH208
    except OSError:
        return ""
    needs = OUR_NEEDS | (sys.stdlib_module_names - NEVER_NEEDED - set(sys.builtin_module_names))
    for entry in entries:
        name = entry.partition(".")[0]
        if name in needs and name not in sys.modules:
            inside = os.path.join(folder, entry, "__init__.py")  # noqa: PTH118
            if entry.endswith(SUFFIXES) or os.path.exists(inside):  # noqa: PTH110
                return name
    return ""


def begin() -> None:
    """Measure this process, if it is the requested one."""
    text = os.environ.get(REQUEST)
    kind, target = what_runs(sys.orig_argv)
    if text is None or is_launcher(kind, target):
        return
    del os.environ[REQUEST]  # the children of this process are not measured
    _, more, before = os.environ.get("PYTHONPATH", "").partition(os.pathsep)
    if more:
        os.environ["PYTHONPATH"] = before
    else:
        os.environ.pop("PYTHONPATH", None)
    if not kind:
        return
    if hidden := hiding(kind, target):
        say(f"nothing is measured: beside the script is a module {hidden!r}, which hides one that is needed here; rename it")
        return
    try:
        import json

        from profiler.session.launch import measure
    except ImportError:
        say("not installed for the Python that runs this; nothing is measured")
        return
    measure(kind, target, json.loads(text))


def say(text: str) -> None:
    """Write one line to stderr, if there is one."""
    if sys.stderr is not None:
        sys.stderr.write(f"epochmeter: {text}\n")


def run_the_other() -> bool:
    """Run the ``sitecustomize`` that this one hides. Return False if there is none."""
    here = os.path.dirname(os.path.abspath(__file__))  # noqa: PTH100, PTH120
    sys.path[:] = [entry for entry in sys.path if os.path.abspath(entry) != here]  # noqa: PTH100
    ours = sys.modules.pop("sitecustomize")
    try:
        import sitecustomize  # type: ignore[import-not-found]  # noqa: F401
    except ModuleNotFoundError as error:
        if error.name != "sitecustomize":
            raise
        return False
    finally:
        sys.modules.setdefault("sitecustomize", ours)
    return True


if __name__ == "sitecustomize":
    IS_THERE = True
    try:
        IS_THERE = run_the_other()
    finally:
        begin()
    if not IS_THERE:  # as plain Python finds it: the script may have a module of that name
        raise ImportError("there is no other sitecustomize", name="sitecustomize")
