"""Crash reports of a package that embeds us: the scrubbed note of an error, and Sentry's envelope around it.

The rules it keeps: of an error only its class and the places in the package's own files are noted, never its text, a file's
name or a variable. ``sentry_sdk`` is imported here alone, when there is consent. The program's own Sentry is not touched:
no global ``init``, no scope, no integration.
"""

from __future__ import annotations

import contextlib
import importlib.util
import secrets
import sys
import time
from collections.abc import Iterator, Mapping
from types import FrameType
from typing import Any
from urllib.parse import urlsplit

from profiler.embedding.own_files import OwnFiles

OTHER = "other"
KNOWN_SOURCES = ("builtins", "json", "subprocess", "pickle", "_pickle", "zipimport", "torch", "numpy")  # of error classes
NO_CRASHES = ("ClickException", "Exit", "Abort")  # of click and Typer: how a command ends, not that it failed


def is_crash(error: BaseException | None) -> bool:
    """Return True for an error, and False for a way to end a program or a command."""
    if not isinstance(error, Exception):
        return False
    return not any(
        kind.__name__ in NO_CRASHES and str(kind.__module__).startswith(("click", "typer")) for kind in type(error).__mro__
    )


def scrubbed(error: BaseException, modules: tuple[str, ...], app: str = "") -> dict[str, Any]:
    """Return the note of an error.

    Args:
        error: the error.
        modules: the import packages whose frames are named.
        app: the distribution that has installed them; without one, they run from a folder of sources.

    Returns:
        ``id`` (random), ``time_unix_ns``, ``types`` (its class and bases, from known sources) and ``frames`` (outermost first):
        ``module:function:+line``, with the line counted from the function's first one, or ``other``.
    """
    types = [kind.__name__ for kind in type(error).__mro__ if str(kind.__module__).partition(".")[0] in KNOWN_SOURCES]
    return {
        "id": secrets.token_hex(16),
        "time_unix_ns": time.time_ns(),
        "types": types,
        "frames": list(_frames(error, OwnFiles(app, modules))),
    }


def _frames(error: BaseException, own: OwnFiles) -> Iterator[str]:
    step = error.__traceback__
    while step is not None:
        module = _module(step.tb_frame)
        code = step.tb_frame.f_code
        # Of code that was made from a text (exec), and of a user's file that was loaded under the package's name, names may be
        # anybody's. The file's name is compared, and not kept.
        path = step.tb_frame.f_globals.get("__file__")
        if isinstance(path, str) and code.co_filename == path and own.has(module, path):
            function = getattr(code, "co_qualname", code.co_name)  # qualified from Python 3.11 on
            yield f"{module}:{function}:+{max((step.tb_lineno or 0) - code.co_firstlineno, 0)}"
        else:
            yield OTHER
        step = step.tb_next


def _module(frame: FrameType) -> str:
    """Return the name of a frame's module; for ``python -m``, the name it was found by."""
    name = frame.f_globals.get("__name__")
    if name == "__main__":
        name = getattr(frame.f_globals.get("__spec__"), "name", None)
    return name if isinstance(name, str) else ""


# ---- Sentry --------------------------------------------------------------------------------------------------------


def has_sentry() -> bool:
    """Return True if Sentry's library is installed. It is not loaded for that."""
    return "sentry_sdk" in sys.modules or importlib.util.find_spec("sentry_sdk") is not None


def address_of(dsn: str) -> str:
    """Return the address that a DSN's envelopes are posted to.

    Raises:
        ValueError: it is no DSN such as ``https://key@host/42``.
    """
    parts = urlsplit(dsn)
    path, _, project = parts.path.rpartition("/")
    if parts.scheme not in ("http", "https") or not parts.username or not parts.hostname or not project.isdecimal():
        raise ValueError("a DSN has the form https://key@host/42")
    return f"{parts.scheme}://{parts.netloc.rpartition('@')[2]}{path}/api/{project}/envelope/"


def public(dsn: str) -> str:
    """Return a DSN without the secret that old ones have."""
    parts = urlsplit(dsn)
    return parts._replace(netloc=f"{parts.username}@{parts.netloc.rpartition('@')[2]}").geturl()


def envelope(event: Mapping[str, Any], dsn: str) -> bytes:
    """Return an event as the envelope that a private client of Sentry's library makes. Nothing is sent.

    Every option is set that the library would otherwise read from the program's environment, git or the machine: the DSN, the
    release, the server's name, the root folder. Its additions to the event are dropped again: ``before_send`` returns the
    given event.
    """
    from sentry_sdk import Client
    from sentry_sdk.consts import DEFAULT_OPTIONS
    from sentry_sdk.transport import Transport

    class Kept(Transport):
        """A transport that keeps the envelope."""

        body = b""

        def capture_envelope(self, envelope: Any) -> None:
            envelope.headers = {"event_id": event["event_id"], "dsn": dsn}
            self.body = envelope.serialize()

    kept = Kept()
    options = {
        "dsn": dsn,
        "transport": kept,
        "before_send": lambda made, hint: dict(event),
        "release": event["release"],
        "environment": "production",
        "server_name": "",
        "project_root": "",
        "default_integrations": False,
        "auto_enabling_integrations": False,
        "integrations": [],
        "include_local_variables": False,
        "include_source_context": False,
        "max_breadcrumbs": 0,
        "attach_stacktrace": False,
        "auto_session_tracking": False,
        "send_client_reports": False,
        "enable_backpressure_handling": False,
        "keep_alive": False,
        "spotlight": False,
        "debug": False,
    }
    with _globals_kept():
        client = Client(**{name: value for name, value in options.items() if name in DEFAULT_OPTIONS})
    try:
        client.capture_event({"event_id": event["event_id"], "level": event["level"]}, scope=None)
    finally:
        client.close(timeout=0)
    return kept.body


@contextlib.contextmanager
def _globals_kept() -> Iterator[None]:
    """Restore the globals that a second client changes for the first one (measured with 2.75).

    It stops the program's continuous profiler and takes its place, and it renames the library.
    """
    from sentry_sdk import client
    from sentry_sdk.profiler import continuous_profiler

    scheduler, name = getattr(continuous_profiler, "_scheduler", None), client.SDK_INFO["name"]
    try:
        if scheduler is not None:
            continuous_profiler._scheduler = None
        yield
    finally:
        client.SDK_INFO["name"] = name
        if scheduler is not None:
            continuous_profiler._scheduler = scheduler
