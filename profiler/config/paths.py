"""The folders in which everything is kept."""

from __future__ import annotations

import os
from pathlib import Path


def home() -> Path | None:
    """Return the folder named by EPOCHMETER_HOME, which holds everything if it is set, or None."""
    named = os.environ.get("EPOCHMETER_HOME", "")
    return Path(named) if named else None


def settings_path() -> Path:
    """Return the path of the settings file, which need not exist."""
    moved = home()
    if moved is not None:
        return moved / "settings.json"
    from platformdirs import user_config_path

    return user_config_path("epochmeter", appauthor=False) / "settings.json"


def data_path() -> Path:
    """Return the folder of everything except the settings."""
    moved = home()
    if moved is not None:
        return moved
    from platformdirs import user_data_path

    return user_data_path("epochmeter", appauthor=False)


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
