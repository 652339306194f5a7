"""The settings: one file, written whole, read fail-closed, with every value's source."""

from __future__ import annotations

import json
import os
import stat
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from conftest import epochmeter, python

from profiler import Profiler, SettingsError, preferences, settings
from profiler.preferences import KEYS, check_value, resolve


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


def test_a_folder_or_a_link_in_the_files_place_means_off(home: Path) -> None:
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


def test_an_environment_value_that_cannot_be_understood_means_off(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("EPOCHMETER_SYNC", "perhaps")
    resolved = resolve({"exporter": "otlp"})
    assert resolved.may_send is False
    assert "EPOCHMETER_SYNC" in resolved.problems[0]
    assert epochmeter("settings").code == 2


def test_where_nothing_can_be_saved(home: Path) -> None:
    home.write_text("in the way")
    assert settings["sync"] is True
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
for turn in range(25):
    settings.update({"retention_days": int(sys.argv[1]) * 100 + turn})
    assert settings["sync"] is False
"""


@pytest.mark.slow
def test_eight_processes_at_once_lose_no_opt_out(home: Path) -> None:
    settings.update(sync=False, exporter="otlp")
    writers = [subprocess.Popen([sys.executable, "-c", WRITER, str(n)], stderr=subprocess.PIPE) for n in range(1, 9)]
    for writer in writers:
        assert writer.communicate(timeout=60)[1] == b""
        assert writer.returncode == 0
    kept = json.loads((home / "settings.json").read_text())
    assert (kept["sync"], kept["exporter"]) == (False, "otlp")
    assert not list(home.glob("*.bad-*"))
    assert not list(home.glob(".settings-*"))


def test_a_write_that_fails_leaves_the_old_file(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    settings.update(sync=False)
    monkeypatch.setattr(preferences.os, "fsync", lambda fd: (_ for _ in ()).throw(OSError(28, "No space left on device")))
    with pytest.raises(SettingsError, match="No space left"):
        settings.update(retention_days=3)
    kept = json.loads((home / "settings.json").read_text())
    assert (kept["sync"], "retention_days" in kept) == (False, False)
    assert not list(home.glob(".settings-*"))
