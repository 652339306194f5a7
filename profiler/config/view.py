"""`settings`: the settings in force on this machine, as a mapping."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from profiler.config.file import reset, update
from profiler.config.resolve import resolve
from profiler.config.schema import KEYS, displayed
from profiler.errors import SettingsError, did_you_mean


class SettingsView(Mapping[str, Any]):
    """``from profiler import settings``: the settings in force on this machine, read anew at each use."""

    def __getitem__(self, key: str) -> Any:
        if key not in KEYS:
            raise KeyError(f"there is no setting {key!r}.{did_you_mean(str(key), KEYS)}")
        return resolve().values[key].value

    def __iter__(self) -> Iterator[str]:
        return iter(KEYS)

    def __len__(self) -> int:
        return len(KEYS)

    def __repr__(self) -> str:
        return f"settings({ {key: displayed(key, value) for key, value in self.items()}!r})"

    def __str__(self) -> str:
        values = resolve().values
        return "\n".join(f"{key} = {displayed(key, value.value)!r}  ({value.source})" for key, value in values.items())

    def update(self, changes: Mapping[str, Any] | None = None, /, **more: Any) -> None:
        """Save settings: ``settings.update({"sync": False})`` or ``settings.update(sync=False)``.

        Raises:
            SettingsError: a key or value cannot be used, or the file cannot be written.
        """
        if changes is not None and not isinstance(changes, Mapping):
            raise SettingsError(f"settings.update takes a mapping such as {{'sync': False}}, not {changes!r}.")
        update({**(changes or {}), **more})

    def reset(self) -> None:
        """Restore every default. A setting that was switched off (sync, usage, crash_reports, local, exporter) stays off.

        Raises:
            SettingsError: the file cannot be written.
        """
        reset()


settings = SettingsView()
