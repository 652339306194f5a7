"""The settings: what the user has chosen, where each value comes from, and the folders everything is kept in.

Not called ``settings``, because importing a submodule of that name would replace the object that
``from profiler import settings`` gives.

The rules it keeps: this is the only module that reads the environment or the settings file; reading never writes;
whatever cannot be understood means "off"; any "off" beats any "on".
"""

from __future__ import annotations

import contextlib
import itertools
import json
import os
import re
import stat
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field, fields
from datetime import datetime, timezone
from pathlib import Path
from typing import Any, Literal, NamedTuple
from urllib.parse import urlsplit

from profiler.config.locks import lock
from profiler.errors import ArgumentTypeError, SettingsError, did_you_mean

VERSION = 2
MIGRATIONS = {  # version: how its keys and values become those of the next one
    1: dict,  # the same, but its choices had no date; a version 1 that wrote to this file would leave the date wrong
}
MAX_FILE_BYTES = 1_000_000
LOCK_TIMEOUT_S = 10.0
EXPORTERS = ("none", "otlp", "ga", "prometheus")
TRUE_WORDS = ("true", "1", "yes", "on")
FALSE_WORDS = ("false", "0", "no", "off")
Source = Literal["default", "host", "file", "argument", "environment", "unreadable file"]


def setting(default: Any, help_text: str) -> Any:
    return field(default=default, metadata={"help": help_text})


@dataclass(frozen=True)
class Settings:
    """Every setting with its default. A new one is one more line here; the command line and the checks read it."""

    sync: bool = setting(True, "may anything leave this machine at all; False is final")
    exporter: str = setting("none", "where measurements go: none, otlp, ga, or prometheus (which fetches them)")
    local: bool = setting(True, "keep the run log on this machine")
    crash_reports: bool = setting(
        False, "may crashes of packages be reported: to their Sentry, with sentry-sdk, or your collector"
    )
    usage: bool = setting(True, "may usage counters be part of what is exported")
    otlp_endpoint: str | None = setting(None, "the collector's base URL; default http://localhost:4318")
    otlp_protocol: str = setting("http/protobuf", "http/protobuf or grpc")
    otlp_certificate: str | None = setting(None, "file with the certificates to trust, for otlp_endpoint")
    otlp_client_certificate: str | None = setting(None, "file with our own certificate, for otlp_endpoint")
    otlp_client_key: str | None = setting(None, "file with the key of our own certificate")
    ga_measurement_id: str | None = setting(None, "G-...; the API secret comes from EPOCHMETER_GA_API_SECRET alone")
    ga_endpoint: str | None = setting(None, "another Google Analytics endpoint: the EU's, or a proxy")
    export_interval: float = setting(60.0, "seconds between exports during a run; a run always exports at its end")
    exit_timeout: float = setting(1.0, "seconds that the end of a run waits for a delivery; 0: not at all")
    outbox_mb: int = setting(64, "megabytes that may wait for delivery; the oldest go first")
    outbox_days: int = setting(30, "days that measurements may wait for delivery")
    prometheus_port: int = setting(9464, "with exporter=prometheus, the port on 127.0.0.1 that is scraped")
    retention_days: int = setting(90, "local run logs and copies of what was sent are removed after so many days")


KEYS: dict[str, Any] = {entry.name: entry.default for entry in fields(Settings)}
HELP: dict[str, str] = {entry.name: entry.metadata["help"] for entry in fields(Settings)}
CONSENT = ("sync", "crash_reports", "usage", "local")  # an explicit False of these, wherever it stands, is final
DESTINATION = ("sync", "exporter", "otlp_endpoint", "ga_measurement_id", "ga_endpoint")  # a change of these is dated
WHERE = (  # a destination is chosen as a whole
    *("exporter", "otlp_endpoint", "otlp_protocol", "otlp_certificate", "otlp_client_certificate", "otlp_client_key"),
    *("ga_measurement_id", "ga_endpoint"),
)
CI_VARIABLES = ("CI", "GITHUB_ACTIONS", "GITLAB_CI", "JENKINS_URL", "TF_BUILD", "BUILDKITE")
NOT_FOR_HOSTS = (  # where one of these is set, nothing goes to a destination that a host package has chosen
    *(*CI_VARIABLES, "PYTEST_CURRENT_TEST", "PYTEST_VERSION", "TOX_ENV_NAME", "NOX_CURRENT_SESSION"),
    *("HF_HUB_OFFLINE", "TRANSFORMERS_OFFLINE", "HF_DATASETS_OFFLINE", "WANDB_MODE=offline"),
    "OTEL_METRICS_EXPORTER=none",
)
OTEL_ENDPOINTS = ("OTEL_EXPORTER_OTLP_ENDPOINT", "OTEL_EXPORTER_OTLP_METRICS_ENDPOINT")
WAITING_FOLDERS = ("open", "new", "waiting", "sending", "aside")  # of the outbox
FROM_ZERO = ("exit_timeout",)  # numbers that may be 0
HIGHEST = {"prometheus_port": 65_535}  # of numbers, where it is below a thousand million
LOOPBACK = ("127.0.0.1", "localhost", "::1")
CHOICES = {"exporter": EXPORTERS, "otlp_protocol": ("http/protobuf", "grpc")}


@dataclass(frozen=True)
class Host:
    """A package that embeds us, and what it would like to be set; its users' own choices outweigh it.

    Attributes:
        began_ns: when the program began with it, in ns since 1970: what the user was told since then was told in this run.
    """

    app: str
    settings: Mapping[str, Any] = field(default_factory=dict)
    began_ns: int = 0


class Value(NamedTuple):
    """A setting in force, and who set it."""

    value: Any
    source: Source
    detail: str = ""


class Resolved(NamedTuple):
    """All settings in force, and what was wrong on the way."""

    values: dict[str, Value]
    problems: list[str]
    decided: str | None = None  # when it was last chosen, in the file, whether anything may leave and where to
    off_in_file: bool = False  # whether the file itself says "off", so that nothing may wait to be sent either

    @property
    def settings(self) -> Settings:
        return Settings(**{key: value.value for key, value in self.values.items()})

    @property
    def may_send(self) -> bool:
        """Whether anything may leave this machine now."""
        return self.values["sync"].value is True and self.values["exporter"].value != "none"

    @property
    def may_hand_over(self) -> bool:
        """Whether an exporter that the program brought along may have anything: nobody has said "off" or "none"."""
        exporter = self.values["exporter"]
        return self.values["sync"].value is True and (exporter.value != "none" or exporter.source == "default")

    def unwanted(self, what: str) -> str:
        """Why something of a package, "usage" or "crash", may not leave though all else may; "" where it may."""
        if what == "usage" and self.values["usage"].value is not True:
            return "counts wait, and usage is off"
        if what == "crash" and self.values["crash_reports"].value is not True:
            return "crash reports wait, and crash_reports is off"
        return ""

    @property
    def host_chose(self) -> bool:
        """Whether the destination was chosen by a package that embeds us, and not by the user."""
        return self.may_send and self.values["exporter"].source == "host"

    @property
    def why_off(self) -> str:
        """What keeps everything on this machine, in words; empty where something may leave."""
        exporter, sync = self.values["exporter"], self.values["sync"]
        if self.may_send:
            return ""
        if sync.value:
            return f"exporter is none ({exporter.detail or exporter.source})"
        cause = f"the settings file {sync.detail}" if sync.source == "unreadable file" else sync.detail or sync.source
        return f"sync is off ({cause})"


def check_key(key: str) -> str:
    """The key, if there is such a setting.

    Raises:
        SettingsError: there is not; close names are suggested.
    """
    if key not in KEYS:
        raise SettingsError(f"there is no setting {key!r}.{did_you_mean(key, KEYS)} Settings: {', '.join(KEYS)}.")
    return key


def check_value(key: str, value: Any, *, strict: bool = False) -> Any:
    """The value as the setting's own type; text such as "off" or "60" is understood unless ``strict``.

    Raises:
        SettingsError: the setting cannot take it; the text says what it can take.
    """
    default = KEYS[check_key(key)]
    if isinstance(default, bool):
        return _boolean(key, value, strict)
    if isinstance(default, (int, float)):
        return _number(key, value, type(default), strict)
    if value is None and default is None:
        return None
    if not isinstance(value, str) or not value.strip():
        raise SettingsError(f"{key} takes text, not {value!r}.")
    if default is None and not strict and value.lower() == "none":
        return None
    if key in CHOICES and value not in CHOICES[key]:
        expected = ", ".join(CHOICES[key])
        raise SettingsError(f"{key} takes one of {expected}, not {value!r}.{did_you_mean(value, CHOICES[key])}")
    if key.endswith("_endpoint"):
        check_address(key, value)
    if key == "ga_measurement_id" and not re.fullmatch("G-[A-Z0-9]{4,20}", value):
        raise SettingsError(f"{key} takes a web stream's id, such as G-ABC123DEF4, not {value!r}.")
    return value


def check_settings(settings: Any) -> dict[str, Any]:
    """Settings given in code, each as its own type.

    Raises:
        SettingsError: no mapping, or a key or value that cannot be used.
    """
    if settings is not None and not isinstance(settings, Mapping):
        raise SettingsError(f"settings is a mapping such as {{'sync': False}}, not {settings!r}")
    return {check_key(key): check_value(key, value) for key, value in (settings or {}).items()}


def check_exporter(exporter: Any) -> None:
    """Whether it is one that measurements can be handed to.

    Raises:
        ArgumentTypeError: it is not.
    """
    if exporter is not None and not isinstance(exporter, str) and not callable(getattr(exporter, "export", None)):
        raise ArgumentTypeError(f"exporter is a name such as 'otlp' or an OpenTelemetry MetricExporter, not {exporter!r}")


def check_address(name: str, value: str) -> None:
    """Whether it is an address that can be posted to.

    Raises:
        SettingsError: it is not; the text does not repeat it where it may hold a password.
    """
    shown = repr(value) if "@" not in value and name.islower() else "this one"
    if not value.startswith(("http://", "https://")):
        raise SettingsError(f"{name} takes an address that starts with http:// or https://, not {shown}.")
    try:
        parts = urlsplit(value)
        usable = bool(parts.hostname) and parts.port != 0
    except ValueError:
        usable = False
    if not usable:
        raise SettingsError(f"{name} takes an address with a host, and a port from 1 to 65535 if any, not {shown}.")
    if name == "ga_endpoint" and parts.scheme == "http" and parts.hostname not in LOOPBACK:
        raise SettingsError(f"{name} takes an address that starts with https://, as the secret is part of it, not {shown}.")


def _boolean(key: str, value: Any, strict: bool) -> bool:
    if isinstance(value, bool):
        return value
    word = str(value).strip().lower() if isinstance(value, (str, int)) else ""
    if not strict and word in TRUE_WORDS:
        return True
    if not strict and word in FALSE_WORDS:
        return False
    raise SettingsError(f"{key} takes true or false (or 1/0, yes/no, on/off), not {value!r}.")


def _number(key: str, value: Any, kind: type, strict: bool) -> Any:
    try:
        if isinstance(value, bool) or (strict and not isinstance(value, (int, float))):
            raise ValueError
        number = kind(value)
        if not (0 < number <= HIGHEST.get(key, 999_999_999) or (number == 0 and key in FROM_ZERO)):
            raise ValueError
    except (TypeError, ValueError, OverflowError):
        expected = "a whole number" if kind is int else "a number"
        least = "from 0" if key in FROM_ZERO else f"from 1 to {HIGHEST[key]}" if key in HIGHEST else "above 0"
        raise SettingsError(f"{key} takes {expected} {least}, not {value!r}.") from None
    return number


# ---- folders -------------------------------------------------------------------------------------------------------


def home() -> Path | None:
    """The folder named by EPOCHMETER_HOME, which holds everything if it is set."""
    named = os.environ.get("EPOCHMETER_HOME", "")
    return Path(named) if named else None


def settings_path() -> Path:
    """Where the settings file is, or would be."""
    moved = home()
    if moved is not None:
        return moved / "settings.json"
    from platformdirs import user_config_path

    return user_config_path("epochmeter", appauthor=False) / "settings.json"


def data_path() -> Path:
    """Where everything but the settings is kept."""
    moved = home()
    if moved is not None:
        return moved
    from platformdirs import user_data_path

    return user_data_path("epochmeter", appauthor=False)


def runs_path() -> Path:
    """Where run logs are kept."""
    return data_path() / "runs"


def sent_path() -> Path:
    """Where copies of what was sent are kept."""
    return data_path() / "sent"


def usage_path() -> Path:
    """Where the counts of packages that embed us are kept."""
    return data_path() / "usage"


def crashes_path() -> Path:
    """Where the crash reports of packages that embed us are kept."""
    return data_path() / "crashes"


def told_path() -> Path:
    """Where it is noted of which destinations the user has been told."""
    return data_path() / "told"


def outbox_path() -> Path:
    """Where what is to be sent waits."""
    return data_path() / "outbox"


# ---- reading -------------------------------------------------------------------------------------------------------


class _Unreadable(Exception):
    """Why the settings file cannot be used; ``valid`` is what of it could be kept."""

    def __init__(self, why: str, valid: Mapping[str, Any] | None = None) -> None:
        super().__init__(why)
        self.valid = valid or {}


def _read_file(path: Path) -> dict[str, Any]:
    """The file's own keys and values, as this version writes them; nothing if there is no file."""
    try:
        if not _is_there(path):
            return {}
        content = json.loads(path.read_bytes().decode("utf-8"), object_pairs_hook=_without_duplicates)
    except OSError as error:
        raise _Unreadable(f"cannot be read: {error.strerror}") from None
    except (ValueError, RecursionError) as error:
        raise _Unreadable(f"is not valid JSON ({str(error)[:80]})") from None
    if not isinstance(content, dict):
        raise _Unreadable("does not hold a JSON object")
    version = content.pop("version", None)
    if type(version) is not int or version < 1:
        raise _Unreadable("has no version number")
    for older in range(version, VERSION):
        content = MIGRATIONS[older](content)
    valid, faults = _sorted_out(content)
    if version > VERSION:
        raise _Unreadable(f"was written by a newer epochmeter (version {version}, known is {VERSION})", valid)
    if faults:
        raise _Unreadable(f"holds a value that cannot be used: {faults[0]}", valid)
    return content


def _sorted_out(content: Mapping[str, Any]) -> tuple[dict[str, Any], list[str]]:
    """The settings that can be used, and what is wrong with the others."""
    valid, faults = {}, []
    for key in KEYS:
        if key in content:
            try:
                valid[key] = check_value(key, content[key], strict=True)
            except SettingsError as error:
                faults.append(str(error))
    if not isinstance(content.get("decided", ""), str):
        faults.append(f"decided is a date, not {content['decided']!r}")
    return valid, faults


def _is_there(path: Path) -> bool:
    """Whether there is a settings file; what is there instead of one cannot be used."""
    try:
        status = os.lstat(path)
    except (FileNotFoundError, NotADirectoryError):
        return False
    if not stat.S_ISREG(status.st_mode):
        raise _Unreadable("is not a plain file")
    if status.st_size > MAX_FILE_BYTES:
        raise _Unreadable(f"has {status.st_size} bytes, which no settings file has")
    return True


def _without_duplicates(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) != len(pairs):
        raise ValueError("a key stands there twice")
    return found


def resolve(arguments: Mapping[str, Any] | None = None, host: Host | None = None) -> Resolved:
    """Every setting in force now: environment over arguments over file over host over default, any "off" over any "on".

    Args:
        arguments: settings given in code by the user, already checked by `check_value`.
        host: the package that embeds us, with its settings, checked too, where it is one that asks.
    """
    problems: list[str] = []
    values = {key: Value(default, "default") for key, default in KEYS.items()}
    seen: dict[str, list[Value]] = {key: [] for key in KEYS}
    saved, decided = _from_file(problems)
    chosen = [*saved, *_from_arguments(arguments or {}), *_from_environment(problems)]
    for key, value in chosen if host is None else _with_host(host, chosen):
        values[key] = value
        seen[key].append(value)
    for key in (*CONSENT, "exporter"):
        off = "none" if key == "exporter" else False
        for value in seen[key]:
            if value.value == off:
                values[key] = value
    if values["sync"].value is not True and values["exporter"].value != "none":
        values["exporter"] = Value("none", values["sync"].source, "sync is off")
    if values["exporter"].source == "host" and (signal := not_for_hosts()):
        values["exporter"] = Value("none", "environment", signal)
    return Resolved(values, problems, decided, is_off({key: value.value for key, value in saved if value.source == "file"}))


def _from_file(problems: list[str]) -> tuple[list[tuple[str, Value]], str | None]:
    """The settings in the file, and the date of its choice; "off" where it cannot be used."""
    try:
        path = settings_path()
        content = _read_file(path)
    except (_Unreadable, OSError, RuntimeError) as error:  # RuntimeError: pathlib finds no home folder
        problems.append(f"the settings file {error}: nothing is sent until it is mended (epochmeter settings sync=...)")
        return [("sync", Value(False, "unreadable file", str(error)))], None
    return [(key, Value(content[key], "file")) for key in KEYS if key in content], content.get("decided")


def _from_arguments(arguments: Mapping[str, Any]) -> Iterator[tuple[str, Value]]:
    for key, value in arguments.items():
        yield key, Value(value, "argument")


def _with_host(host: Host, chosen: list[tuple[str, Value]]) -> Iterator[tuple[str, Value]]:
    """A host's settings, as far as it may choose, below what its users have chosen.

    It can lower consent and never raise it, nor have the program wait longer. A destination, with all that belongs to it,
    is the user's, if the user has named one, or else the host's.
    """
    address = {"otlp": "otlp_endpoint", "ga": "ga_measurement_id"}.get(host.settings.get("exporter", ""), "")
    by_user = {key for key, _ in chosen}
    if address == "otlp_endpoint" and variables(OTEL_ENDPOINTS):
        by_user.add(address)
    for key, value in host.settings.items():
        raises = key in CONSENT and value is True
        overruled = key in WHERE and value != "none" and ("exporter" in by_user or (address in by_user and key != "exporter"))
        if not raises and not overruled:
            yield key, Value(min(value, KEYS[key]) if key == "exit_timeout" else value, "host", host.app)
    named = host.settings.get(address) is not None and not by_user & {"exporter", address}
    yield from ((key, value) for key, value in chosen if not (named and key in WHERE))


def not_for_hosts() -> str:
    """What in the environment keeps everything from destinations that a host package has chosen, or ""."""
    for entry in NOT_FOR_HOSTS:
        name, _, wanted = entry.partition("=")
        value = os.environ.get(name, "").strip().lower()
        if value == wanted if wanted else value not in ("", *FALSE_WORDS):
            return name
    return ""


def _from_environment(problems: list[str]) -> Iterator[tuple[str, Value]]:
    for key in KEYS:
        variable = f"EPOCHMETER_{key.upper()}"
        text = os.environ.get(variable)
        if not text:
            continue
        try:
            yield key, Value(check_value(key, text), "environment", variable)
        except SettingsError as error:
            problems.append(f"{variable}: {error} Nothing is sent until it is mended.")
            yield "sync", Value(False, "environment", variable)
    if os.environ.get("DO_NOT_TRACK", "").strip().lower() not in ("", *FALSE_WORDS):
        yield "sync", Value(False, "environment", "DO_NOT_TRACK")
    if os.environ.get("OTEL_SDK_DISABLED", "").strip().lower() == "true":
        yield "sync", Value(False, "environment", "OTEL_SDK_DISABLED")


def names_set(names: Iterable[str]) -> set[str]:
    """Which of these environment variables are set at all; their values are not looked at."""
    return {name for name in names if name in os.environ}


def choices() -> dict[str, str]:
    """The environment's variables that choose settings, for another process of ours; not where things are kept."""
    chosen = ("EPOCHMETER_", "OTEL_", "DO_NOT_TRACK")
    return {name: os.environ[name] for name in os.environ if name.startswith(chosen) and name != "EPOCHMETER_HOME"}


def without_choices() -> dict[str, str]:
    """The environment for a process that is to know nothing of this one's settings."""
    return {name: value for name, value in os.environ.items() if name not in {*choices(), "EPOCHMETER_HOME"}}


def variables(names: Iterable[str]) -> dict[str, str]:
    """Those of these environment variables that are set to something."""
    return {name: os.environ[name] for name in names if os.environ.get(name, "").strip()}


def variable(name: str) -> str | None:
    """One environment variable as it is, for those where set to nothing differs from not set."""
    return os.environ.get(name)


def environment_for_run(request: Mapping[str, Any]) -> dict[str, str]:
    """The environment for a script that is to be measured: Python runs `startup.sitecustomize` before it."""
    before = os.environ.get("PYTHONPATH")
    startup = str(Path(__file__).parents[1] / "startup")
    return {
        **os.environ,
        "EPOCHMETER_RUN": json.dumps({**request, "pythonpath": before}),
        "PYTHONPATH": os.pathsep.join((startup, before)) if before else startup,
    }


# ---- writing -------------------------------------------------------------------------------------------------------


def update(changes: Mapping[str, Any]) -> None:
    """Saves these settings and leaves all others as they are.

    Raises:
        SettingsError: a key or value that cannot be used (then nothing is saved), or a file that cannot be written.
    """
    checked = {check_key(key): check_value(key, value) for key, value in changes.items()}
    _rewrite(lambda content: {**content, **checked})


def reset() -> None:
    """Restores every default, except an explicit ``sync=False``: that stays until someone sets ``sync=True``."""
    _rewrite(lambda content: {"sync": False} if content.get("sync") is False else {})


def _rewrite(change: Callable[[dict[str, Any]], dict[str, Any]]) -> None:
    """Reads, changes and replaces the file under a lock, whole or not at all, readable by its owner alone.

    A file that cannot be used is kept aside. What it said of consent is not known, so it said "off"; its other settings
    are kept where they can be used.
    """
    import filelock

    try:
        path = settings_path()
        path.parent.mkdir(parents=True, exist_ok=True)
        with lock(f"{path}.lock").acquire(timeout=LOCK_TIMEOUT_S):
            try:
                content = _read_file(path)
            except _Unreadable as error:
                _keep_aside(path)
                content = {**error.valid, "sync": False}
            changed = _dated(content, change(content))
            _write_whole(path, {"version": VERSION, **changed})
        if is_off(changed):
            empty_outbox()
        if changed.get("crash_reports") is False:
            empty_outbox("crash")
        if changed.get("usage") is False:
            empty_outbox("usage")
    except filelock.Timeout:
        raise SettingsError(f"another process has held {path}.lock for {LOCK_TIMEOUT_S:.0f} s; try again.") from None
    except (OSError, RuntimeError) as error:
        reason = getattr(error, "strerror", None) or error
        raise SettingsError(
            f"the settings cannot be saved: {reason}. Make the folder writable, or name another one in EPOCHMETER_HOME."
        ) from error


def is_off(content: Mapping[str, Any]) -> bool:
    """Whether these settings, as they stand in the file, keep everything here."""
    return content.get("sync") is False or content.get("exporter") == "none"


def empty_outbox(what: str = "") -> None:
    """Removes all that waits to be sent, because the user has switched off. Each leaves a mark, which is counted.

    Not done by the half that sends, which is not even loaded where sending is off.

    Args:
        what: "usage", "crash", or "" for everything. Counts that were to be sent then stay here.
    """
    if what != "crash":
        keep_counts()
    with contextlib.suppress(OSError, RuntimeError):
        box = outbox_path()
        for path in [path for folder in WAITING_FOLDERS for path in (box / folder).glob("*")]:
            with contextlib.suppress(OSError):
                if what and _kind_of(path) != what:
                    continue
                if path.suffix == ".entry":
                    (box / "dropped").mkdir(exist_ok=True)
                    (box / "dropped" / f"{path.stem}.withdrawn").touch(mode=0o600)
                path.unlink()


def _kind_of(path: Path) -> str:
    """What an entry of the outbox is of; "" of other files."""
    try:
        with path.open("rb") as file:
            return str(json.loads(file.readline(65_536)).get("what", "")) if path.suffix == ".entry" else ""
    except (ValueError, AttributeError):
        return ""


def keep_counts() -> None:
    """Counts of packages that were to be sent stay here."""
    with contextlib.suppress(OSError, RuntimeError):
        for path in usage_path().glob("*/pending/*.json"):
            with contextlib.suppress(OSError):
                (path.parents[1] / "kept").mkdir(exist_ok=True)
                os.replace(path, path.parents[1] / "kept" / path.name)


def _keep_aside(path: Path) -> None:
    """Keeps what cannot be used, under another name. There is no moment without a file: that would read as the defaults."""
    aside = _aside(path)
    try:
        os.link(path, aside, follow_symlinks=False)
    except (OSError, NotImplementedError):  # a folder, or a file system without links
        os.replace(path, aside)


def _aside(path: Path) -> str:
    """A name for a file that cannot be used, which no other file has."""
    name = f"{path}.bad-{time.strftime('%Y%m%dT%H%M%S', time.gmtime())}"
    names = itertools.chain([name], (f"{name}-{count}" for count in itertools.count(2)))
    return next(free for free in names if not os.path.lexists(free))


def _dated(before: Mapping[str, Any], after: dict[str, Any]) -> dict[str, Any]:
    """With a date, wherever it changes whether anything may leave or where to: what is older does not leave."""
    kept = {key: value for key, value in after.items() if key != "decided"}
    if any(before.get(key, KEYS[key]) != after.get(key, KEYS[key]) for key in DESTINATION):
        return {**kept, "decided": datetime.now(timezone.utc).isoformat(timespec="microseconds")}
    return {**kept, "decided": before["decided"]} if "decided" in before else kept


def _write_whole(path: Path, content: Mapping[str, Any]) -> None:
    import tempfile

    descriptor, temporary = tempfile.mkstemp(prefix=".settings-", dir=path.parent)  # mkstemp makes it mode 0600
    try:
        with os.fdopen(descriptor, "w", encoding="utf-8") as file:
            json.dump(content, file, indent=2)
            file.write("\n")
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except BaseException:
        with contextlib.suppress(OSError):
            os.unlink(temporary)
        raise


class SettingsView(Mapping[str, Any]):
    """``from profiler import settings``: the settings in force on this machine, looked up anew at each use."""

    def __getitem__(self, key: str) -> Any:
        if key not in KEYS:
            raise KeyError(f"there is no setting {key!r}.{did_you_mean(str(key), KEYS)}")
        return resolve().values[key].value

    def __iter__(self) -> Iterator[str]:
        return iter(KEYS)

    def __len__(self) -> int:
        return len(KEYS)

    def __repr__(self) -> str:
        return f"settings({dict(self)!r})"

    def __str__(self) -> str:
        values = resolve().values
        return "\n".join(f"{key} = {value.value!r}  ({value.source})" for key, value in values.items())

    def update(self, changes: Mapping[str, Any] | None = None, /, **more: Any) -> None:
        """Saves settings: ``settings.update({"sync": False})`` or ``settings.update(sync=False)``.

        Raises:
            SettingsError: a key or value that cannot be used, or a file that cannot be written.
        """
        if changes is not None and not isinstance(changes, Mapping):
            raise SettingsError(f"settings.update takes a mapping such as {{'sync': False}}, not {changes!r}.")
        update({**(changes or {}), **more})

    def reset(self) -> None:
        """Restores every default, except an explicit ``sync=False``.

        Raises:
            SettingsError: the file cannot be written.
        """
        reset()


settings = SettingsView()
