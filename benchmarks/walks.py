"""Count the functions of ours on the way of a batch, a reading and an export, and the times a settings file is parsed.

    python benchmarks/walks.py

A hop is one function of ours that is entered, counted once; comprehensions and functions without a name are left out.
Each walk is watched with `sys.setprofile` in the threads that it runs in. It needs nothing but the public interface, so it
runs against older versions, too (``PYTHONPATH=<their folder>``), and shows whether a change made a way longer.

- **a step**: one `prof.phase` in one step of `prof.train`, in the middle of an epoch.
- **the epoch's end**: from the end of the last step until the epoch's line is in the run log.
- **a reading**: one tick of the sampling thread.
- **an export**: one payload, from the tick that is due until the courier has handed it to a loopback server,
  without the functions of an ordinary tick.
- **sync=False in mid-run**: from `settings.update(sync=False)` until the next tick has withdrawn the run's consent; the
  functions of that tick are counted, too.
"""

from __future__ import annotations

import http.server
import importlib.util
import os
import sys
import tempfile
import threading
import time
from collections.abc import Callable
from pathlib import Path
from types import FrameType
from typing import Any

TICK_S = 0.2
DEADLINE_S = 20.0
SETTLED_S = 3.0  # by then, the settings file is old enough for its cache
Hop = tuple[str, str, int]


class Walk:
    """The functions entered between `begin` and `stop`, in every thread that was started after `install`."""

    def __init__(self) -> None:
        self.roots = tuple(f"{Path(_origin(name)).parent}{os.sep}" for name in ("profiler", "exporters"))
        self.is_open = False
        self.hops: set[Hop] = set()
        self.parses = 0
        self.thread: int | None = None

    def install(self) -> None:
        """Watch this thread, and all that are started from now on."""
        threading.setprofile(self._event)
        sys.setprofile(self._event)

    def begin(self, *, alone: bool = False) -> None:
        """Watch from now on: all threads, or ``alone`` the calling one."""
        self.thread = threading.get_ident() if alone else None
        self.parses = 0
        self.hops, self.is_open = set(), True

    def stop(self) -> set[Hop]:
        """Watch no longer, and return the functions entered since `begin`."""
        self.is_open = False
        return self.hops

    def _event(self, frame: FrameType, event: str, _: Any) -> None:
        code = frame.f_code
        if self.thread not in (None, threading.get_ident()):
            return
        if self.is_open and event == "call" and code.co_filename.startswith(self.roots) and code.co_name[0] != "<":
            self.parses += code.co_name == "_without_duplicates"  # called once for each settings file that is parsed
            self.hops.add((code.co_filename, code.co_name, code.co_firstlineno))


class Server(http.server.BaseHTTPRequestHandler):
    """Accept every payload and count it."""

    received = 0

    def do_POST(self) -> None:
        """Answer as a collector does."""
        self.rfile.read(int(self.headers["content-length"]))
        type(self).received += 1
        self.send_response(200)
        self.send_header("content-length", "0")
        self.end_headers()

    def log_message(self, *_: Any) -> None:
        """Print nothing."""


def _origin(name: str) -> str:
    found = importlib.util.find_spec(name)
    assert found is not None and found.origin is not None
    return found.origin


def wait_for(condition: Callable[[], bool]) -> None:
    """Wait until the condition holds.

    Raises:
        TimeoutError: it does not hold after 20 s.
    """
    deadline = time.monotonic() + DEADLINE_S
    while not condition():
        if time.monotonic() > deadline:
            raise TimeoutError("a walk did not come to its end")
        time.sleep(0.01)


def show(name: str, hops: set[Hop]) -> None:
    """Print a walk's length."""
    print(f"{name:28}{len(hops):4} functions in {len({file for file, _, _ in hops}):3} files")


def main() -> None:
    """Walk all ways once."""
    walk = Walk()
    walk.install()
    from profiler import Profiler, settings

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Server)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    settings.update(exporter="otlp", otlp_endpoint=f"http://127.0.0.1:{server.server_port}", export_interval=10.0)
    prof = Profiler("walks", interval=TICK_S)
    prof.start()
    for epoch in prof.epochs(2):
        if epoch == 1:
            show("the epoch's end", walk.stop())
        for number, _ in enumerate(prof.train(range(8))):
            if epoch == 1 and number == 5:
                show("a step", walk.stop())
            if epoch == 1 and number == 4:
                walk.begin(alone=True)
            with prof.phase("forward"):
                pass
        if epoch == 0:
            walk.begin(alone=True)
    time.sleep(SETTLED_S)
    walk.begin()
    time.sleep(3 * TICK_S)
    tick = walk.stop()
    show("a reading", tick)
    walk.begin()
    wait_for(lambda: Server.received > 0)
    time.sleep(TICK_S)
    show("an export", walk.stop() - tick)
    print(f"the settings file was parsed {walk.parses} times meanwhile")
    walk.begin()
    settings.update(sync=False)
    time.sleep(3 * TICK_S)
    show("sync=False in mid-run", walk.stop())
    prof.stop()


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as home:
        os.environ["EPOCHMETER_HOME"] = home
        main()
