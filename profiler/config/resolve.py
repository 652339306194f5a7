"""Resolve the settings in force from file, code, environment, embedding package and defaults.

The rules it keeps: anything that cannot be understood means "off". Any "off" beats any "on".
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from profiler.config.environment import OTEL_ENDPOINTS, not_for_hosts, values_from_environment, variables
from profiler.config.file import UnreadableSettings, is_off, read_settings
from profiler.config.paths import settings_path
from profiler.config.schema import CONSENT, KEYS, WHERE, ResolvedValue, Settings


@dataclass(frozen=True)
class EmbeddingApp:
    """A package that embeds us, and the settings it would like. Its users' own choices outweigh them.

    Attributes:
        name: the package's name.
        settings: the settings it would like.
        began_ns: the moment the program began to use it, in ns since 1970. A notice shown later was shown in this run.
        joint_facts: True if its author gets the facts of a machine together, and not each apart from the others.
    """

    name: str
    settings: Mapping[str, Any] = field(default_factory=dict)
    began_ns: int = 0
    joint_facts: bool = False


class Resolved(NamedTuple):
    """All settings in force.

    Attributes:
        values: each setting with its source.
        problems: faults of the file or the environment, in words.
        decided: the date, in the file, of the last choice of a destination or of consent; None if it has none.
        off_in_file: True if the file itself says "off", so that no entry may wait for delivery either.
    """

    values: dict[str, ResolvedValue]
    problems: list[str]
    decided: str | None = None
    off_in_file: bool = False

    @property
    def settings(self) -> Settings:
        """The values alone."""
        return Settings(**{key: value.value for key, value in self.values.items()})

    @property
    def may_send(self) -> bool:
        """True if anything may leave this machine now."""
        return self.values["sync"].value is True and self.values["exporter"].value != "none"

    @property
    def may_hand_over(self) -> bool:
        """True if the program's own exporter may have the data: nobody has said "off" or "none"."""
        exporter = self.values["exporter"]
        return self.values["sync"].value is True and (exporter.value != "none" or exporter.source == "default")

    def unwanted(self, what: str) -> str:
        """Return why entries of a kind ("usage" or "crash") may not leave although others may, or ""."""
        if what == "usage" and self.values["usage"].value is not True:
            return "counts wait, and usage is off"
        if what == "crash" and self.values["crash_reports"].value is not True:
            return "crash reports wait, and crash_reports is off"
        return ""

    @property
    def host_chose(self) -> bool:
        """True if a package that embeds us chose the destination, and not the user."""
        return self.may_send and self.values["exporter"].source == "host"

    def tells_apart(self, app: EmbeddingApp | None, exporter: Any = None) -> bool:
        """Return True if facts go to a package's author, each apart from the others. The user's own collector gets all."""
        return app is not None and not app.joint_facts and (self.host_chose or exporter is not None)

    @property
    def why_off(self) -> str:
        """The reason why everything stays on this machine, in words; empty if anything may leave."""
        exporter, sync = self.values["exporter"], self.values["sync"]
        if self.may_send:
            return ""
        if sync.value:
            return f"exporter is none ({exporter.detail or exporter.source})"
        cause = f"the settings file {sync.detail}" if sync.source == "unreadable file" else sync.detail or sync.source
        return f"sync is off ({cause})"


def resolve(arguments: Mapping[str, Any] | None = None, app: EmbeddingApp | None = None) -> Resolved:
    """Return the settings in force: environment over arguments over file over package over default, "off" over "on".

    Args:
        arguments: settings that the user gave in code, checked by `check_value`.
        app: the package that embeds us, with its checked settings; None for the user's own program.
    """
    problems: list[str] = []
    values = {key: ResolvedValue(default, "default") for key, default in KEYS.items()}
    seen: dict[str, list[ResolvedValue]] = {key: [] for key in KEYS}
    saved, decided = _from_file(problems)
    chosen = [*saved, *_from_arguments(arguments or {}), *values_from_environment(problems)]
    for key, value in chosen if app is None else _with_app(app, chosen):
        values[key] = value
        seen[key].append(value)
    for key in (*CONSENT, "exporter"):
        off = "none" if key == "exporter" else False
        for value in seen[key]:
            if value.value == off:
                values[key] = value
    if values["sync"].value is not True and values["exporter"].value != "none":
        values["exporter"] = ResolvedValue("none", values["sync"].source, "sync is off")
    if values["exporter"].source == "host" and (signal := not_for_hosts()):
        values["exporter"] = ResolvedValue("none", "environment", signal)
    return Resolved(values, problems, decided, is_off({key: value.value for key, value in saved if value.source == "file"}))


def _from_file(problems: list[str]) -> tuple[list[tuple[str, ResolvedValue]], str | None]:
    """Return the settings in the file and the date of its choice; "off" if the file cannot be used."""
    try:
        path = settings_path()
        content = read_settings(path)
    except (UnreadableSettings, OSError, RuntimeError) as error:  # RuntimeError: pathlib finds no home folder
        cure = getattr(error, "cure", "name a folder of your own in EPOCHMETER_HOME")
        problems.append(f"the settings file {error}: nothing is sent until it is mended ({cure})")
        return [("sync", ResolvedValue(False, "unreadable file", str(error)))], None
    return [(key, ResolvedValue(content[key], "file")) for key in KEYS if key in content], content.get("decided")


def _from_arguments(arguments: Mapping[str, Any]) -> Iterator[tuple[str, ResolvedValue]]:
    for key, value in arguments.items():
        yield key, ResolvedValue(value, "argument")


def _with_app(app: EmbeddingApp, chosen: list[tuple[str, ResolvedValue]]) -> Iterator[tuple[str, ResolvedValue]]:
    """Yield a package's settings, as far as it may choose, and then its users' choices.

    A package can lower consent, never raise it. It can shorten ``exit_timeout``, never lengthen it. A destination is
    chosen as a whole: by the user, if the user has named one, or else by the package.
    """
    address = {"otlp": "otlp_endpoint", "ga": "ga_measurement_id"}.get(app.settings.get("exporter", ""), "")
    by_user = {key for key, _ in chosen}
    if address == "otlp_endpoint" and variables(OTEL_ENDPOINTS):
        by_user.add(address)
    for key, value in app.settings.items():
        raises = key in CONSENT and value is True
        overruled = key in WHERE and value != "none" and ("exporter" in by_user or (address in by_user and key != "exporter"))
        if not raises and not overruled:
            yield key, ResolvedValue(min(value, KEYS[key]) if key == "exit_timeout" else value, "host", app.name)
    named = app.settings.get(address) is not None and not by_user & {"exporter", address}
    yield from ((key, value) for key, value in chosen if not (named and key in WHERE))
