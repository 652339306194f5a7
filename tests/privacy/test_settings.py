"""The settings: one file, written whole, read fail-closed, with every value's source."""

from __future__ import annotations

import json
import os
import stat
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from profiler import Profiler, SettingsError, settings
from profiler.config import file as config_file
from profiler.config.resolve import resolve
from profiler.config.schema import KEYS, check_value
from support.processes import epochmeter, python
from support.sinks import Sink


def write(home: Path, text: str | bytes) -> Path:
    home.mkdir(exist_ok=True)
    path = home / "settings.json"
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    return path


def test_defaults(home: Path) -> None:
    assert settings["sync"] is True
    assert settings["exporter"] == "none"
    assert set(settings) == set(KEYS)
    assert "retention_days = 90  (default)" in str(settings)
    assert not home.exists()  # reading never writes
    with pytest.raises(KeyError, match="Did you mean 'sync'"):
        settings["snyc"]


def test_update_in_both_forms(home: Path) -> None:
    settings.update({"exporter": "otlp"})
    settings.update(retention_days=7, crash_reports="yes")
    assert (settings["exporter"], settings["retention_days"], settings["crash_reports"]) == ("otlp", 7, True)
    kept = json.loads((home / "settings.json").read_text())
    assert kept.pop("decided")[:2] == "20"
    assert kept == {"version": 2, "exporter": "otlp", "retention_days": 7, "crash_reports": True}
    if os.name == "posix":
        assert stat.S_IMODE((home / "settings.json").stat().st_mode) == 0o600


def test_reset_keeps_an_explicit_off(home: Path) -> None:
    settings.update(sync=False, exporter="otlp", retention_days=3)
    settings.reset()
    assert (settings["sync"], settings["exporter"], settings["retention_days"]) == (False, "none", 90)
    settings.update(sync=True)
    settings.reset()
    assert settings["sync"] is True


def test_every_off_survives_reset(home: Path) -> None:
    off = {"sync": False, "usage": False, "crash_reports": False, "local": False, "exporter": "none"}
    settings.update({**off, "retention_days": 3})
    settings.reset()
    assert {key: settings[key] for key in off} == off and settings["retention_days"] == 90
    kept = json.loads((home / "settings.json").read_text())
    assert set(kept) == {"version", "decided", *off}


@pytest.mark.parametrize(
    "text",
    [
        *('"Sync": false', '"sync ": false', '"synch": true', '"SYNC": false', '"exporters": "none"', '"crash_report": false'),
        *(
            '"settings": {"sync": false}',
            '"profile": {"a": {"enabled": false}}',
            '"off": true',
            '"opted_out": 1',
            '"no_sync": 1',
        ),
        *('"telemetry": false', '"enabled": 0', '"do_not_track": true', '"disable": 1', '"Exporter": "none"', '"usag": false'),
    ],
)
def test_mistyped_off_is_off_with_one_warning(home: Path, text: str) -> None:
    write(home, '{"version": 2, "exporter": "otlp", ' + text + "}")
    resolved = resolve()
    assert not resolved.may_send and not resolved.may_hand_over
    (problem,) = resolved.problems
    assert (
        f"there is no setting {text.split(':')[0].replace(chr(34), chr(39))}, " in problem and "looks like an 'off'" in problem
    )


@pytest.mark.parametrize(
    ("name", "value"),
    [
        *(("EPOCHMETER_SYNCH", "0"), ("EPOCHMETER_SNYC", "1"), ("EPOCHMETER_Sync", "1"), ("epochmeter_sync", "0")),
        *(
            ("EPOCHMETER_TELEMETRY", "on"),
            ("EPOCHMETER_EXPORTERS", "none"),
            ("EPOCHMETER_OPT_OUT", "1"),
            ("EPOCHMETER_X", "no"),
        ),
        *(("EPOCHMETER_OFF", "1"), ("EPOCHMETER_OPTED_OUT", "1"), ("EPOCHMETER_DNT", "1"), ("EPOCHMETERSYNC", "0")),
        *(("EPOCHMETER_DO_NOT_TRACK", "1"), ("EPOCHMETER_DISABLED", "true"), ("EPOCHMETER_CRASHREPORTS", "maybe")),
    ],
)
def test_mistyped_variable_is_off(home: Path, monkeypatch: pytest.MonkeyPatch, name: str, value: str) -> None:
    write(home, '{"version": 2, "exporter": "otlp"}')
    monkeypatch.setenv(name, value)
    resolved = resolve()
    assert not resolved.may_send
    assert len(resolved.problems) == 1 and resolved.problems[0].startswith(f"{name}: ")


@pytest.mark.parametrize("name", ["do_not_track", "Do_Not_Track", "DO-NOT-TRACK", "DONOTTRACK", "DNT"])
def test_do_not_track_in_any_spelling(home: Path, monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    write(home, '{"version": 2, "exporter": "otlp"}')
    monkeypatch.setenv(name, "1")
    assert (resolve().may_send, resolve().problems) == (False, [])


def test_none_in_code_outweighs_an_exporter(sink: Sink) -> None:
    with Profiler("x", exporter="otlp", settings={"exporter": "none", "otlp_endpoint": sink.url}) as prof:
        list(prof.train(range(3)))
    assert sink.received == []


def test_variables_of_ours_are_no_mistakes(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write(home, '{"version": 2, "exporter": "otlp", "future": 7, "theme": "dark"}')
    for name, value in (("OTLP_HEADERS", "a=b"), ("GA_API_SECRET", "s"), ("RUN", "{}"), ("FUTURE", "7"), ("SYNC", "")):
        monkeypatch.setenv(f"EPOCHMETER_{name}", value)
    assert (resolve().may_send, resolve().problems) == (True, [])


def test_keys_of_other_versions_are_kept(home: Path) -> None:
    write(home, '{"version": 1, "future": [1], "sync": false}')
    settings.update(retention_days=5)
    assert json.loads((home / "settings.json").read_text())["future"] == [1]
    assert settings["sync"] is False


def test_a_bad_update_saves_nothing(home: Path) -> None:
    for bad in ({"sync": "perhaps"}, {"snyc": True}, {"sync": False, "retention_days": 0}, {"exporter": "oltp"}):
        with pytest.raises(SettingsError):
            settings.update(bad)
    with pytest.raises(SettingsError, match="mapping"):
        settings.update(["sync"])  # type: ignore[arg-type]
    assert not (home / "settings.json").exists()


@pytest.mark.parametrize(
    ("key", "given", "value"),
    [
        ("sync", "off", False),
        ("sync", "1", True),
        ("sync", 0, False),
        ("retention_days", "30", 30),
        ("export_interval", "0.5", 0.5),
        ("otlp_endpoint", "none", None),
        ("otlp_endpoint", "https://collector:4318", "https://collector:4318"),
    ],
)
def test_values_are_understood(key: str, given: Any, value: Any) -> None:
    assert check_value(key, given) == value


@pytest.mark.parametrize(
    ("key", "given"),
    [
        *(("sync", value) for value in ("", "maybe", 2, None, [])),
        *(("retention_days", value) for value in (0, -1, "x", None, True, float("nan"), 1e12)),
        *(("otlp_endpoint", value) for value in ("collector:4318", "", 3)),
        ("otlp_protocol", "http/json"),
    ],
)
def test_values_that_cannot_be_used(key: str, given: Any) -> None:
    with pytest.raises(SettingsError, match=key):
        check_value(key, given)


BROKEN = [
    *("", "{", "[]", "null", "0", '"False"', "\0\0\0", '{"version": 1, "sync": true, "sync": false}', "[" * 100_000),
    *('{"version": 3, "sync": true}', '{"sync": true}', '{"version": 1, "sync": "False"}', '{"version": 1, "sync": 0}'),
    *('{"version": 1, "exporter": "everywhere"}', '{"version": 1, "retention_days": "x"}', '{"version": true}'),
    *(b'\xef\xbb\xbf{"version": 1}', b'{"version": 1, "a": "\xff"}', b'{"version": 1, "a": "' + b"x" * 1_100_000 + b'"}'),
]


@pytest.mark.parametrize("content", BROKEN, ids=range(len(BROKEN)))
def test_a_file_that_cannot_be_understood_means_off(
    home: Path, content: str | bytes, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = write(home, content)
    before = path.read_bytes()
    monkeypatch.setenv("EPOCHMETER_EXPORTER", "otlp")
    resolved = resolve()
    assert resolved.may_send is False
    assert resolved.values["sync"].source == "unreadable file"
    with Profiler("x", exporter="otlp", settings={"sync": True}) as prof:
        assert list(prof.train(range(3))) == [0, 1, 2]
    assert len([r for r in caplog.records if "settings file" in r.message]) == 1
    assert path.read_bytes() == before  # reading never writes
    settings.update(retention_days=5)
    (aside,) = home.glob("settings.json.bad-*")
    assert aside.read_bytes() == before
    assert settings["sync"] is False  # what it said is not known, so it said "off"


def test_folder_or_link_as_file_means_off(home: Path) -> None:
    (home / "settings.json").mkdir(parents=True)
    assert resolve().may_send is False
    assert settings["sync"] is False
    (home / "settings.json").rmdir()
    target = home / "elsewhere.json"
    target.write_text('{"version": 1, "exporter": "otlp"}')
    (home / "settings.json").symlink_to(target)
    assert settings["sync"] is False


def test_sources_and_precedence(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    settings.update(exporter="otlp", retention_days=7, export_interval=5.0)
    monkeypatch.setenv("EPOCHMETER_EXPORT_INTERVAL", "9")
    values = resolve({"retention_days": 8, "export_interval": 6.0}).values
    assert values["sync"][:2] == (True, "default")
    assert values["exporter"][:2] == ("otlp", "file")
    assert values["retention_days"][:2] == (8, "argument")
    assert values["export_interval"] == (9.0, "environment", "EPOCHMETER_EXPORT_INTERVAL")


@pytest.mark.parametrize(
    ("text", "off"),
    [("1", True), ("true", True), ("anything", True), ("", False), ("0", False), ("false", False), ("No", False)],
)
def test_do_not_track(monkeypatch: pytest.MonkeyPatch, text: str, off: bool) -> None:
    monkeypatch.setenv("DO_NOT_TRACK", text)
    assert settings["sync"] is not off


def test_the_environment_cannot_switch_on_what_is_off(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    settings.update(sync=False, exporter="none")
    monkeypatch.setenv("EPOCHMETER_SYNC", "1")
    monkeypatch.setenv("EPOCHMETER_EXPORTER", "otlp")
    assert resolve({"sync": True, "exporter": "otlp"}).may_send is False


def test_unknown_environment_value_means_off(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("EPOCHMETER_SYNC", "perhaps")
    resolved = resolve({"exporter": "otlp"})
    assert resolved.may_send is False
    assert "EPOCHMETER_SYNC" in resolved.problems[0]
    assert epochmeter("settings").code == 2


def test_where_nothing_can_be_saved(home: Path) -> None:
    home.write_text("in the way")
    assert settings["sync"] is False  # what was chosen cannot be read
    with pytest.raises(SettingsError, match="EPOCHMETER_HOME"):
        settings.update(sync=False)


def test_without_a_home_it_works_from_memory() -> None:
    script = "from profiler import Profiler\nwith Profiler('x') as p: list(p.train(range(3)))\n"
    script += "print(p.summary.stages['train']['steps'])"
    answer = python("-c", script, HOME="/nonexistent/nobody", EPOCHMETER_HOME="", XDG_CONFIG_HOME="", XDG_DATA_HOME="")
    assert (answer.code, answer.out.strip()) == (0, "3")


WRITER = """
import sys
from profiler import settings
from profiler.config import file as config_file
from profiler.config.resolve import resolve
me, rounds, version = map(int, sys.argv[1:])
config_file.VERSION = version
for turn in range(rounds):
    settings.update({"retention_days": me * 1000 + turn})
    assert settings["sync"] is False
    assert resolve().may_send is False
"""


def write_at_once(rounds: int, versions: list[int]) -> None:
    """Update the file from several processes at once, which know formats up to these versions."""
    arguments = [[str(me), str(rounds), str(version)] for me, version in enumerate(versions, 1)]
    writers = [subprocess.Popen([sys.executable, "-c", WRITER, *given], stderr=subprocess.PIPE) for given in arguments]
    for writer in writers:
        assert writer.communicate(timeout=110)[1] == b""
        assert writer.returncode == 0


@pytest.mark.slow
def test_eight_processes_at_once_lose_no_opt_out(home: Path) -> None:
    settings.update(sync=False, exporter="otlp", otlp_endpoint="http://collector:4318")
    write_at_once(200, [config_file.VERSION] * 8)
    kept = json.loads((home / "settings.json").read_text())
    assert (kept["sync"], kept["exporter"], kept["otlp_endpoint"]) == (False, "otlp", "http://collector:4318")
    assert not list(home.glob("*.bad-*"))
    assert not list(home.glob(".settings-*"))


@pytest.mark.slow
def test_upgrade_during_writes_loses_no_opt_out(home: Path) -> None:
    """The file is an older version's; seven processes of this version work on it, and one that is still the older."""
    write(home, '{"version": 1, "sync": false, "exporter": "otlp", "otlp_endpoint": "http://collector:4318"}')
    write_at_once(200, [config_file.VERSION] * 7 + [1])
    kept = resolve()
    assert (kept.problems, kept.values["sync"].value) == ([], False)
    assert kept.values["otlp_endpoint"].value == "http://collector:4318"  # kept through every change of version
    for aside in home.glob("*.bad-*"):  # what the older process could not know
        assert json.loads(aside.read_text())["version"] == config_file.VERSION
    assert not list(home.glob(".settings-*"))


def test_older_file_is_read_and_migrated(home: Path) -> None:
    path = write(home, '{"version": 1, "sync": false, "retention_days": 7, "future": 1}')
    assert (settings["sync"], settings["retention_days"]) == (False, 7)
    assert json.loads(path.read_text())["version"] == 1  # reading never writes
    settings.update(export_interval=5)
    assert json.loads(path.read_text()) == {
        "version": config_file.VERSION,
        "sync": False,
        "retention_days": 7,
        "future": 1,
        "export_interval": 5.0,
    }


def test_path_is_never_without_a_file(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Another process may read at any moment, and no file would read as the defaults: sync on."""
    path = write(home, "{")
    real = config_file._write_whole

    def write_whole(*arguments: Any) -> bool:
        assert path.exists()
        assert resolve().values["sync"].value is False
        return real(*arguments)

    monkeypatch.setattr(config_file, "_write_whole", write_whole)
    settings.update(retention_days=5)
    assert settings["sync"] is False
    assert len(list(home.glob("settings.json.bad-*"))) == 1


@pytest.fixture
def parses(monkeypatch: pytest.MonkeyPatch) -> list[bytes]:
    """Return the list of texts parsed as a settings file from now on."""
    found: list[bytes] = []
    real = config_file._content

    def content(text: bytes) -> dict[str, Any]:
        found.append(text)
        return real(text)

    monkeypatch.setattr(config_file, "_content", content)
    return found


def test_unchanged_file_is_parsed_once(home: Path, parses: list[bytes], monkeypatch: pytest.MonkeyPatch) -> None:
    path = write(home, '{"version": 2, "retention_days": 7}')
    monkeypatch.setattr(config_file, "FRESH_NS", -1_000_000_000)  # as if the file were old
    assert {resolve().settings.retention_days for _ in range(50)} == {7}
    assert len(parses) == 1
    path.write_text('{"version": 2, "retention_days": 88}')
    assert resolve().settings.retention_days == 88
    path.unlink()
    assert resolve().settings.retention_days == 90
    write(home, '{"version": 2, "retention_days": 5')  # spoilt: off, however often it is asked
    assert [resolve().values["sync"].value for _ in range(3)] == [False] * 3
    assert len(parses) == 3


TICK_NS = 2 * 10**9


class CoarseStatus:
    """The status of a file on a file system whose clock ticks every two seconds, as FAT's does."""

    def __init__(self, status: os.stat_result) -> None:
        self.st_dev, self.st_ino, self.st_mode, self.st_size = status.st_dev, status.st_ino, status.st_mode, status.st_size
        self.st_mtime_ns = status.st_mtime_ns // TICK_NS * TICK_NS
        self.st_ctime_ns = status.st_ctime_ns // TICK_NS * TICK_NS


def test_file_that_just_changed_is_not_cached(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Two changes within one tick of the file system's clock have the same stamp; "off" must not be missed."""
    path = write(home, '{"version": 2, "sync": true }')
    real = config_file._known

    def known(path: Path, descriptor: int, status: os.stat_result) -> Any:
        return real(path, descriptor, CoarseStatus(status))  # type: ignore[arg-type]

    monkeypatch.setattr(config_file, "_known", known)
    for count in range(40):
        wanted = count % 2 == 0
        with path.open("r+b") as file:  # in place, and of the same size
            file.write(b'{"version": 2, "sync": true }' if wanted else b'{"version": 2, "sync": false}')
        assert resolve().values["sync"].value is wanted


@pytest.mark.parametrize(
    ("key", "value", "says"),
    [
        ("otlp_endpoint", "http://127.0.0.1:99999", "a port from 1 to 65535"),
        ("otlp_endpoint", "http://", "with a host"),
        ("ga_endpoint", "http://evil.example", "starts with https://"),
        ("ga_measurement_id", "foo", "such as G-ABC123DEF4"),
        ("prometheus_port", "99999999", "from 1 to 65535"),
        ("prometheus_port", "0", "from 1 to 65535"),
        ("exit_timeout", "nan", "from 0"),
        ("exporter", "promotheus", "Did you mean 'prometheus'"),
    ],
)
def test_what_could_never_work_is_refused(key: str, value: str, says: str) -> None:
    with pytest.raises(SettingsError, match=says):
        settings.update({key: value})


def test_usable_parts_of_bad_file_are_kept(home: Path) -> None:
    bad = '{"version": 2, "sync": true, "exporter": "otlp", "otlp_endpoint": "http://c:1", "retention_days": "x"}'
    write(home, bad)
    settings.update(export_interval=5)
    assert settings["sync"] is False  # whatever else it said
    assert (settings["otlp_endpoint"], settings["retention_days"], settings["export_interval"]) == ("http://c:1", 90, 5.0)
    (aside,) = home.glob("settings.json.bad-*")
    assert aside.read_text() == bad


def test_bad_files_are_all_kept(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    moments = iter([time.gmtime(2_000_000_000), time.gmtime(2_000_000_000), time.gmtime(1_000_000_000)])
    monkeypatch.setattr(config_file.time, "gmtime", lambda: next(moments))
    for text in ("{", "[", "]"):
        write(home, text)
        settings.update(retention_days=5)
    assert sorted(path.read_text() for path in home.glob("settings.json.bad-*")) == ["[", "]", "{"]


TRY_ALL = """
import os, sys
from profiler import Profiler, SettingsError, settings
with Profiler("x", exporter="otlp", settings={"otlp_endpoint": sys.argv[1]}) as prof:
    for _ in prof.epochs(2):
        assert list(prof.train(range(3))) == [0, 1, 2]
assert prof.summary.stages["train"]["steps"] == 6
try:
    settings.update(sync=False)
    print("saved", settings["sync"])
except SettingsError as error:
    print("not saved:", error)
"""
NOBODY = 54_321
BECOME_NOBODY = f"""
import os, sys, tempfile
everything = {TRY_ALL!r}
with tempfile.TemporaryDirectory() as folder:  # this user may not even read the interpreter's modules: load them before
    os.environ["EPOCHMETER_HOME"] = folder
    out, sys.stdout = sys.stdout, open(os.devnull, "w")
    exec(everything)
    sys.stdout = out
from profiler.records import faults
faults.forget_warnings()
os.environ.clear()
os.environ.update(eval(sys.argv[2]))
os.setuid({NOBODY})
exec(everything)
"""


def as_nobody(folder: Path, url: str, **environment: str) -> subprocess.CompletedProcess[str]:
    """Run `TRY_ALL` as a user without a name, as container platforms do."""
    if os.name != "posix" or os.geteuid() != 0:
        pytest.skip("only root can become another user")
    command = [sys.executable, "-c", BECOME_NOBODY, url, repr(environment)]
    plain = {name: value for name, value in os.environ.items() if not name.startswith("COV")}  # it could not write its file
    return subprocess.run(command, cwd=folder, env=plain, capture_output=True, text=True, timeout=60)


@pytest.fixture
def open_folder() -> Iterator[Path]:
    """Make a folder that every user can reach; a test's own temporary folder is private."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        folder.chmod(0o755)
        yield folder


@pytest.mark.parametrize("place", ["a home that is not there", "no home", "a read-only home", "a home of our own"])
def test_a_user_whom_nobody_knows(open_folder: Path, sink: Sink, place: str) -> None:
    environment = {
        "a home that is not there": {"HOME": "/nonexistent"},
        "no home": {},
        "a read-only home": {"HOME": str(open_folder), "TMPDIR": str(open_folder)},
        "a home of our own": {"EPOCHMETER_HOME": str(open_folder / "kept")},
    }[place]
    done = as_nobody(open_folder, sink.url, **environment)
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("not saved: the settings cannot be saved: ")
    assert "EPOCHMETER_HOME" in done.stdout
    assert len(sink.received) == 1  # by the run before; what cannot be noted is not sent
    assert "Traceback" not in done.stderr


def test_the_same_user_where_it_can_write(open_folder: Path, sink: Sink) -> None:
    open_folder.chmod(0o777)
    done = as_nobody(open_folder, sink.url, EPOCHMETER_HOME=str(open_folder / "kept"))
    assert done.stdout == "saved False\n", done.stderr
    assert len(sink.received) == 2


def test_unreadable_settings_file_means_off(open_folder: Path, sink: Sink) -> None:
    path = open_folder / "settings.json"
    path.write_text('{"version": 2, "exporter": "otlp"}')
    path.chmod(0o000)
    os.chown(open_folder, NOBODY, NOBODY)
    os.chown(path, NOBODY, NOBODY)
    done = as_nobody(open_folder, sink.url, EPOCHMETER_HOME=str(open_folder))
    assert done.stdout == "saved False\n", done.stderr
    assert done.stderr.count("settings file cannot be read: Permission denied") == 1
    assert len(sink.received) == 1
    (aside,) = open_folder.glob("*.bad-*")
    assert aside.read_text() == '{"version": 2, "exporter": "otlp"}'


NO_SPACE = """
import resource, signal
from profiler import Profiler, SettingsError, settings
settings.update(sync=False)
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
resource.setrlimit(resource.RLIMIT_FSIZE, (10, 10))
try:
    settings.update(retention_days=3)
except SettingsError as error:
    print(error)
with Profiler("x") as prof:
    assert list(prof.train(range(3))) == [0, 1, 2]
print(settings["sync"], settings["retention_days"])
"""


@pytest.mark.skipif(sys.platform == "win32", reason="Windows has no limit on the size of files")
def test_full_disk_leaves_old_settings() -> None:
    answer = python("-c", NO_SPACE)
    assert answer.out.splitlines()[0].startswith("the settings cannot be saved: File too large")
    assert answer.out.splitlines()[1] == "False 90"


def test_a_write_that_fails_leaves_the_old_file(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    settings.update(sync=False)
    monkeypatch.setattr(
        config_file.os,
        "fsync",
        lambda fd: (_ for _ in ()).throw(OSError(28, "No space left on device")),
    )
    with pytest.raises(SettingsError, match="No space left"):
        settings.update(retention_days=3)
    kept = json.loads((home / "settings.json").read_text())
    assert (kept["sync"], "retention_days" in kept) == (False, False)
    assert not list(home.glob(".settings-*"))
