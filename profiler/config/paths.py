"""The folders in which everything is kept."""

from __future__ import annotations

import os
import re
from pathlib import Path

from profiler import STARTED_IN
from profiler.errors import NoFolderError

HOME = "EPOCHMETER_HOME"
PLACES = ("HOME", "XDG_CONFIG_HOME", "XDG_DATA_HOME", "USERPROFILE", "APPDATA", "LOCALAPPDATA")  # platformdirs reads these
_homes: dict[str, Path | None] = {}  # by the variable's text
_platform: dict[tuple[str | None, ...], tuple[Path, Path]] = {}


def home() -> Path | None:
    """Return the folder named by EPOCHMETER_HOME, which holds everything if it is set, or None.

    A relative name, or one that begins with ``~``, is made absolute when the program imports us. Otherwise a program that
    changes its folder would leave its user's "off" behind.

    Raises:
        NoFolderError: the name cannot be made absolute.
    """
    named = os.environ.get(HOME, "")
    if not named:
        return None
    if named not in _homes:
        _homes[named] = _absolute(named)
    found = _homes[named]
    if found is None:
        raise NoFolderError(f"{HOME} names a folder that cannot be found ({named!r}); name one by its whole path.")
    return found


def _absolute(named: str) -> Path | None:
    folder, own = STARTED_IN
    try:
        found = Path(own + named[1:]) if re.match(r"~($|[/\\])", named) else Path(named).expanduser()
    except RuntimeError:  # there is no such user
        return None
    if str(found).startswith("~") or "\0" in named or not (folder or found.is_absolute()):
        return None
    return Path(os.path.normpath(folder / found))


def is_expanded() -> str:
    """Return the text of EPOCHMETER_HOME if the folder in use is another one, or ""."""
    named = os.environ.get(HOME, "")
    return named if named and str(home()) != os.path.normpath(named) else ""


def bases() -> tuple[Path, ...]:
    """Return the folders below which everything of ours lies.

    Raises:
        NoFolderError: there is none: no home folder is known.
    """
    moved = home()
    return (moved,) if moved is not None else _platform_folders()


def _platform_folders() -> tuple[Path, Path]:
    """Return the folder of the settings and the one of everything else, as the system has them.

    Raises:
        NoFolderError: no home folder is known.
    """
    key = tuple(os.environ.get(name) for name in PLACES)
    if key not in _platform:
        from platformdirs import user_config_path, user_data_path

        config = _absolute(str(user_config_path("epochmeter", appauthor=False)))
        data = _absolute(str(user_data_path("epochmeter", appauthor=False)))
        if config is None or data is None:
            raise NoFolderError(f"no home folder is known; name a folder in {HOME}.")
        _platform[key] = config, data
    return _platform[key]


def settings_path() -> Path:
    """Return the path of the settings file, which need not exist."""
    return bases()[0] / "settings.json"


def data_path() -> Path:
    """Return the folder of everything except the settings."""
    return bases()[-1]


def runs_path() -> Path:
    """Return the folder of the run logs."""
    return data_path() / "runs"


def sent_path() -> Path:
    """Return the folder of the copies of sent bodies."""
    return data_path() / "sent"


def usage_path() -> Path:
    """Return the folder of the counts of packages that embed us."""
    return data_path() / "usage"


def crashes_path() -> Path:
    """Return the folder of the crash reports of packages that embed us."""
    return data_path() / "crashes"


def told_path() -> Path:
    """Return the folder of the notices that the user has seen."""
    return data_path() / "told"


def outbox_path() -> Path:
    """Return the folder of the entries that wait for delivery."""
    return data_path() / "outbox"
