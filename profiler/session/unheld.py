"""End a run whose Profiler nobody holds any more, as when a notebook's cell runs again."""

from __future__ import annotations

import contextlib
import threading

TYPE_CHECKING = False
if TYPE_CHECKING:
    from profiler.session.session import Session


NOTE = "the run was ended because nothing held its Profiler any more"


def end_soon(session: Session) -> None:
    """End a run in a thread.

    The collector may call this anywhere, also where a lock of ours is held. At the interpreter's end no thread starts any
    more, and the run has been ended before.
    """
    if session.state == "running" or (session.state == "new" and session.observation.is_in_place):
        with contextlib.suppress(RuntimeError):
            threading.Thread(target=_end, args=(session,), name="epochmeter-end", daemon=True).start()


def _end(session: Session) -> None:
    if session.state == "running":
        session.run.note(NOTE)
        session.finish("finished")
    else:
        session.retire()
        session.faults.swallow("hooks could not be removed", session.observation.remove)
