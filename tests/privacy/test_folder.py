"""The folder may be hostile: what is not ours, or may be changed by others, is as if it were not there, and means "off"."""

from __future__ import annotations

import json
import os
import re
import stat
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path

import pytest

from exporters.entry import MAX_BODY_BYTES, DestinationKey, Head, UnreadableError
from exporters.outbox import Outbox
from profiler import Profiler, SettingsError, Telemetry, settings
from profiler.config import file as config_file
from profiler.config.folder import Folder
from profiler.config.place import UntrustedError
from profiler.config.resolve import resolve
from support.processes import epochmeter, python
from support.sinks import Sink, serving

pytestmark = pytest.mark.skipif(os.name != "posix", reason="Windows has other owners and no modes")
OTHER = 54_321
as_root = pytest.mark.skipif(os.name != "posix" or os.geteuid() != 0, reason="only root can give a file to another user")


@pytest.fixture
def thesis(tmp_path: Path) -> Iterator[Path]:
    """Make a folder of the user's own, which nothing may change."""
    folder = tmp_path / "thesis"
    folder.mkdir()
    for name in ("thesis.tex", f"{1:020d}-aaaaaaaaaaaa-final.entry", f"{'a' * 16}.part", "settings.json"):
        (folder / name).write_text("{}")
        os.utime(folder / name, (0, 0))
    before = {path.name: path.read_bytes() for path in folder.iterdir()}
    yield folder
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == before


def use_everything(sink: Sink) -> None:
    """Train, count and switch off, as a user would; nothing of it may raise but what cannot be saved."""
    with Profiler("x", settings={"exporter": "otlp", "otlp_endpoint": sink.url, "exit_timeout": 0.2}) as prof:
        for _ in prof.epochs(1):
            assert list(prof.train(range(3))) == [0, 1, 2]
    with Telemetry("digits", "1", features=("a",)) as telemetry:
        telemetry.feature("a")
        with suppress(ZeroDivisionError), telemetry.guard():
            _ = 1 / 0
    with suppress(SettingsError):
        settings.update(sync=False)
    with suppress(SettingsError):
        settings.reset()
    resolve()


# ---- the base ------------------------------------------------------------------------------------------------------


def of_another(home: Path) -> None:
    os.chown(home, OTHER, OTHER)


def writable_by_others(home: Path) -> None:
    home.chmod(0o2770)


def another_users_link(home: Path) -> None:
    home.rename(home.with_name("real"))
    home.symlink_to(home.with_name("real"))
    os.chown(home, OTHER, OTHER, follow_symlinks=False)


@as_root
@pytest.mark.parametrize("spoil", [of_another, writable_by_others, another_users_link])
def test_untrusted_base_means_off(home: Path, sink: Sink, spoil: Callable[[Path], None]) -> None:
    home.mkdir(mode=0o700)
    (home / "settings.json").write_text(json.dumps({"version": 2, "exporter": "otlp", "otlp_endpoint": sink.url}))
    assert resolve().may_send
    spoil(home)
    resolved = resolve()
    assert (resolved.may_send, len(resolved.problems)) == (False, 1)
    assert re.search("chmod go-w|EPOCHMETER_HOME", resolved.problems[0])
    use_everything(sink)
    assert sorted(path.name for path in home.iterdir()) == ["settings.json"]
    assert sink.received == []
    with pytest.raises(SettingsError, match=r"cannot be saved: .*; (chmod go-w|name a folder)"):
        settings.update(sync=True)
    problem = next(check for check in epochmeter("doctor", "--json").json["checks"] if check["name"] == "data folder")
    assert problem["state"] == "problem" and problem["cure"] in resolved.problems[0]


@as_root
def test_settings_file_of_another_means_off(home: Path, sink: Sink) -> None:
    home.mkdir(mode=0o700)
    path = home / "settings.json"
    path.write_text(json.dumps({"version": 2, "exporter": "otlp", "otlp_endpoint": sink.url}))
    os.chown(path, OTHER, OTHER)
    assert resolve().why_off.startswith("sync is off (the settings file cannot be trusted")
    os.chown(path, 0, 0)
    assert resolve().may_send


@pytest.mark.parametrize("which", ["file", "folder"])
def test_file_that_others_may_write_means_off(home: Path, which: str) -> None:
    home.mkdir(mode=0o700)
    path = home / "settings.json"
    path.write_text(json.dumps({"version": 2, "exporter": "otlp"}))
    for mode in (0o020, 0o002):
        (path if which == "file" else home).chmod(0o700 | mode)
        assert resolve().why_off.startswith("sync is off (the settings file cannot be trusted")
        assert "chmod go-w" in resolve().problems[0]
    path.chmod(0o600)
    home.chmod(0o755)
    assert resolve().may_send


LOWERED = """
import os, sys
os.environ["EPOCHMETER_HOME"] = sys.argv[1]
from profiler import Profiler, settings
from profiler.config.resolve import resolve
from profiler.config import file, resolve as module
import difflib, filelock, ipaddress, platformdirs  # another user may not read the interpreter's folder
os.setuid(54_321)
found = resolve()
print(found.settings.exporter, found.settings.otlp_endpoint, found.settings.usage, found.problems)
"""


@as_root
@pytest.mark.parametrize("whose_folder", [0, OTHER])
def test_roots_settings_can_only_lower(tmp_path: Path, whose_folder: int) -> None:
    import tempfile

    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        folder.chmod(0o755)
        text = {"version": 2, "exporter": "otlp", "otlp_endpoint": "http://127.0.0.1:9", "usage": False}
        (folder / "settings.json").write_text(json.dumps(text))
        os.chown(folder, whose_folder, whose_folder)
        assert python("-c", LOWERED, name).out == "none None False []\n"


@as_root
@pytest.mark.parametrize("text", ['{"version": 2, "sync": "false"}', '{"sync": false', '{"version": 2, "Sync": false}', "{}"])
def test_broken_settings_of_root_mean_off(text: str) -> None:
    import tempfile

    with tempfile.TemporaryDirectory() as name:
        (Path(name) / "settings.json").write_text(text)
        os.chown(name, OTHER, OTHER)
        Path(name).chmod(0o755)
        assert python("-c", LOWERED.replace("found.settings.usage", "found.values['sync'].value"), name).out.startswith(
            "none None False ["
        )


SAVED = LOWERED.replace("found = resolve()", "settings.update(sync=False)\nfound = resolve()").replace(
    "usage, ", "sync, found.settings.usage, "
)


@as_root
def test_off_is_saved_over_settings_of_root() -> None:
    """The folder is the user's, and root's file in it stands in the way of the user's own "off"."""
    import tempfile

    with tempfile.TemporaryDirectory() as name:
        (Path(name) / "settings.json").write_text('{"version": 2, "exporter": "otlp", "usage": false}')
        os.chown(name, OTHER, OTHER)
        Path(name).chmod(0o755)
        assert python("-c", SAVED, name).out == "none None False False []\n"
        kept = json.loads((Path(name) / "settings.json").read_text())
        assert (kept["sync"], kept["usage"], "exporter" in kept) == (False, False, False)


def test_own_link_as_base_is_followed(home: Path) -> None:
    (home.parent / "disk").mkdir()
    home.symlink_to(home.parent / "disk")
    settings.update(retention_days=7)
    assert settings["retention_days"] == 7 and (home.parent / "disk" / "settings.json").exists()


# ---- below the base ------------------------------------------------------------------------------------------------

NAMES = ["settings.json", "settings.json.lock", "announced.txt", "runs", "sent", "told", "crashes", "usage", "usage/digits"]
NAMES += ["usage/digits/kept", "usage/digits/lock", "outbox", "outbox/lock"]
NAMES += [f"outbox/{state}" for state in ("open", "new", "waiting", "sending", "aside", "dropped", "done", "trouble")]
NAMES += ["outbox/new/" + "b" * 16 + ".part", f"outbox/waiting/{1:020d}-aaaaaaaaaaaa-final.entry"]


def a_link(path: Path, thesis: Path) -> None:
    path.symlink_to(thesis / "settings.json" if "." in path.name else thesis)


def a_fifo(path: Path, thesis: Path) -> None:
    os.mkfifo(path)


def a_folder(path: Path, thesis: Path) -> None:
    path.mkdir()
    (path / "thesis.tex").write_text("the user's own")


def a_dangling_link(path: Path, thesis: Path) -> None:
    path.symlink_to(thesis / "made-by-us")


@pytest.mark.parametrize("odd", [a_link, a_dangling_link, a_fifo, a_folder])
@pytest.mark.parametrize("name", NAMES)
def test_odd_file_at_our_name_deletes_nothing(
    home: Path, thesis: Path, sink: Sink, name: str, odd: Callable[[Path, Path], None]
) -> None:
    path = home / name
    path.parent.mkdir(parents=True)
    odd(path, thesis)
    use_everything(sink)
    if odd is a_folder and name != "settings.json":
        assert (path / "thesis.tex").read_text() == "the user's own"
    elif name != "settings.json":  # that one is kept aside under another name
        assert path.is_symlink() or stat.S_ISFIFO(path.lstat().st_mode)
    else:
        assert len(list(home.glob("settings.json.bad-*"))) == 1


def test_switching_off_follows_no_link(home: Path, thesis: Path) -> None:
    (home / "outbox").mkdir(parents=True)
    for state in ("new", "waiting", "open", "aside"):
        (home / "outbox" / state).symlink_to(thesis)
    (home / "usage").symlink_to(thesis)
    settings.update(sync=False)


@pytest.mark.parametrize("umask", [0o000, 0o002, 0o077, 0o777])
def test_folders_and_files_are_ours_alone(tmp_path: Path, sink: Sink, umask: int) -> None:
    script = f"import os; os.umask({umask})\n" + TRAIN
    where = tmp_path / "a" / "b" / "c"
    chosen = {"EPOCHMETER_EXPORTER": "otlp", "EPOCHMETER_OTLP_ENDPOINT": sink.url}
    answer = python("-c", script, EPOCHMETER_HOME=str(where), **chosen)
    assert answer.code == 0 and len(sink.received) == 1, answer.err
    found = [path for path in (tmp_path / "a").rglob("*") if path.name != "settings.json.lock"]
    assert len(found) > 10
    for path in [tmp_path / "a", *found]:
        assert stat.S_IMODE(path.stat().st_mode) == (0o700 if path.is_dir() else 0o600), path


TRAIN = """
from profiler import Profiler, settings
settings.update(retention_days=7)
with Profiler("x") as prof:
    for _ in prof.epochs(2):
        list(prof.train(range(3)))
"""


# ---- where it is ---------------------------------------------------------------------------------------------------


def test_relative_home_survives_chdir(tmp_path: Path, sink: Sink) -> None:
    (tmp_path / "a").mkdir()
    script = "import os, profiler; os.chdir('/')\n" + TRAIN
    environment = {**os.environ, "EPOCHMETER_HOME": ".kept", "EPOCHMETER_EXPORTER": "otlp"}
    environment["EPOCHMETER_OTLP_ENDPOINT"] = sink.url
    command = [sys.executable, "-m", "profiler.cli", "settings", "sync=false"]
    subprocess.run(command, cwd=tmp_path / "a", env=environment, check=True, capture_output=True)
    subprocess.run([sys.executable, "-c", script], cwd=tmp_path / "a", env=environment, check=True)
    assert sink.received == [] and not Path("/.kept").exists()
    assert len(list((tmp_path / "a" / ".kept" / "runs").iterdir())) == 1


@pytest.mark.parametrize(("named", "meant"), [("~/kept", "kept"), ("~", ""), (".epm/../x", None)])
def test_home_is_expanded_and_doctor_says_so(tmp_path: Path, named: str, meant: str | None) -> None:
    command = [sys.executable, "-m", "profiler.cli", "doctor", "--json"]
    environment = {**os.environ, "EPOCHMETER_HOME": named, "HOME": str(tmp_path / "me")}
    (tmp_path / "me").mkdir(mode=0o700)
    done = subprocess.run(command, cwd=tmp_path, env=environment, check=True, capture_output=True, text=True)
    (check,) = [check for check in json.loads(done.stdout)["checks"] if check["name"] == "EPOCHMETER_HOME"]
    expected = tmp_path / "x" if meant is None else tmp_path / "me" / meant
    assert check["detail"] == f"{named} is taken as {expected}"
    assert not list(tmp_path.glob("~*"))


def test_home_that_means_nothing_is_off(sink: Sink) -> None:
    answer = python("-c", TRAIN.partition("\n")[2].partition("\n")[0] + "\n" + TRAIN, EPOCHMETER_HOME="~nobody-at-all/x")
    assert "cannot be found" in answer.err and not Path("~nobody-at-all").exists()
    for command in (["runs"], ["report"], ["telemetry", "log"], ["telemetry", "flush"], ["telemetry", "preview"], ["settings"]):
        answer = epochmeter(*command, EPOCHMETER_HOME="~nobody-at-all/x")
        assert "Traceback" not in answer.err and "cannot be found" in answer.err, command
    found = epochmeter("doctor", EPOCHMETER_HOME="~nobody-at-all/x")
    assert found.code == 0 and "cannot be found" in found.out


def test_settings_that_cannot_be_reached_mean_off(home: Path) -> None:
    """A link to a disk that is not mounted, or a file where a folder was: what was chosen there is not known."""
    home.symlink_to(home.with_name("not-mounted"))
    assert resolve().why_off.startswith("sync is off") and "leads nowhere" in resolve().problems[0]
    home.unlink()
    home.write_text("")
    assert resolve().why_off.startswith("sync is off")


# ---- an entry proves nothing about itself --------------------------------------------------------------------------

KEY = DestinationKey("otlp", "http/protobuf", "http://collector", None)


def test_bomb_in_the_outbox_is_not_unpacked(home: Path) -> None:
    import resource
    import zlib

    box = Outbox(Folder(home / "outbox"))
    box.put(Head(KEY, "aa", box.now()), 1, "final", b"body")
    (entry,) = box.waiting()
    path = home / "outbox" / "waiting" / entry.file
    squeeze = zlib.compressobj(9, zlib.DEFLATED, 31)
    bomb = b"".join(squeeze.compress(b"\0" * (1 << 24)) for _ in range(64)) + squeeze.flush()  # a gibibyte
    path.write_bytes(path.read_bytes().partition(b"\n")[0] + b"\n" + bomb)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    with pytest.raises(UnreadableError, match=f"larger than {MAX_BODY_BYTES} bytes"):
        box.whole(box.waiting()[0])
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 200_000  # KiB


def test_huge_file_is_not_read(home: Path) -> None:
    box = Outbox(Folder(home / "outbox"))
    box.put(Head(KEY, "aa", box.now()), 1, "final", b"body")
    with (home / "outbox" / "waiting" / box.waiting()[0].file).open("r+b") as file:
        file.truncate(1 << 40)
    with pytest.raises(UntrustedError, match="more than such a file has"):
        box.whole(box.waiting()[0])


def test_head_that_is_put_is_read(home: Path, sink: Sink) -> None:
    """Names take as much room as a package may declare: a thousand features of forty letters, and modules."""
    names = [f"f{number:03d}" + "x" * 36 for number in range(1000)]
    modules = [f"m{number:03d}" + "y" * 36 for number in range(1000)]
    settings.update(exporter="otlp", otlp_endpoint=sink.url)
    with Telemetry("big", "1.0", features=names, modules=modules) as telemetry:
        telemetry.feature(names[1])
    assert len(sink.received) == 1
    from exporters.rules import Declared

    head = Head(KEY, "aa", 1.0, declared=Declared("big", (), tuple(names * 30)))
    box = Outbox(Folder(home / "outbox"))
    with pytest.raises(OSError, match="the declared names take"):
        box.put(head, 1, "final", b"body")
    assert box.waiting() == []


def test_entry_goes_nowhere_by_its_own_word(home: Path, sink: Sink) -> None:
    """An entry names an address and declares names, while nothing is chosen here; and then while another is."""
    from support.exports import a_body

    box = Outbox(Folder(home / "outbox"))
    key = DestinationKey("otlp", "http/protobuf", f"{sink.url}/v1/metrics", None)
    box.put(Head(key, "a" * 12, box.now()), 1, "final", a_body())
    assert epochmeter("telemetry", "flush").code == 3
    other, end = serving()
    elsewhere = {"EPOCHMETER_EXPORTER": "otlp", "EPOCHMETER_OTLP_ENDPOINT": other.url}
    assert epochmeter("telemetry", "flush", **elsewhere).code == 3
    end()
    assert sink.received == other.received == [] and len(box.waiting()) == 1
    here = {"EPOCHMETER_EXPORTER": "otlp", "EPOCHMETER_OTLP_ENDPOINT": sink.url}
    assert epochmeter("telemetry", "flush", **here).code == 0
    assert len(sink.received) == 1


def test_undeclared_names_wait_for_the_users_word(home: Path, sink: Sink) -> None:
    from exporters.rules import Declared
    from support.exports import a_usage_body

    settings.update(exporter="otlp", otlp_endpoint=sink.url)
    decided = resolve().decided
    box = Outbox(Folder(home / "outbox"))
    declared = Declared("alice-at-acme", (), ("secret-project",))
    key = DestinationKey("otlp", "http/protobuf", f"{sink.url}/v1/metrics", decided)
    head = Head(key, "a" * 12, box.now(), declared=declared, what="usage")
    box.put(head, 1, "final", a_usage_body(declared))
    with Profiler("x") as prof:
        list(prof.train(range(3)))
    answer = epochmeter("telemetry", "flush")
    assert answer.code == 3 and "alice-at-acme wait" in answer.err
    assert [b"secret-project" in received.content for received in sink.received] == [False]
    assert epochmeter("telemetry", "flush", "--adopt").code == 0
    assert b"secret-project" in sink.received[-1].content


# ---- "off" ---------------------------------------------------------------------------------------------------------


def test_off_is_saved_while_the_lock_is_held(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(config_file, "LOCK_TIMEOUT_OFF_S", 0.1)
    monkeypatch.setattr(config_file, "LOCK_TIMEOUT_S", 0.1)
    settings.update(exporter="otlp")
    hold = (
        "import fcntl, sys, time; file = open(sys.argv[1], 'r+'); fcntl.flock(file, fcntl.LOCK_EX); print('held', flush=True)\n"
    )
    command = [sys.executable, "-c", hold + "sys.stdin.read()", str(home / "settings.json.lock")]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as hostage:
        assert hostage.stdout is not None and hostage.stdout.readline() == b"held\n"
        with pytest.raises(SettingsError, match=r"has held .*An 'off' is saved at once"):
            settings.update(retention_days=3)
        settings.update(sync=False)
        assert settings["sync"] is False and settings["exporter"] == "none"
        assert hostage.stdin is not None
        hostage.stdin.close()


def test_off_survives_writer_with_the_lock(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Another process has read the file before the "off", and writes its own change after it."""
    settings.update(exporter="otlp")
    real = config_file._write_whole

    def slow(*arguments: object) -> bool:
        monkeypatch.setattr(config_file, "_write_whole", real)
        monkeypatch.setattr(config_file, "LOCK_TIMEOUT_OFF_S", 0.05)
        assert python("-c", "from profiler import settings; settings.update(sync=False)").code == 0
        return real(*arguments)  # type: ignore[arg-type]

    monkeypatch.setattr(config_file, "_write_whole", slow)
    settings.update(retention_days=3)
    assert (settings["sync"], settings["retention_days"]) == (False, 3)


def test_off_makes_room_for_itself(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """On a full disk, what waits for delivery goes first: it must not leave any more, and may make room."""
    settings.update(exporter="otlp")
    box = Outbox(Folder(home / "outbox"))
    box.put(Head(KEY, "aa", box.now()), 1, "final", b"body")
    real = config_file._write_whole

    def full(*arguments: object) -> bool:
        if box.waiting():
            raise OSError(28, "No space left on device")
        return real(*arguments)  # type: ignore[arg-type]

    monkeypatch.setattr(config_file, "_write_whole", full)
    with pytest.raises(SettingsError, match=r"No space left on device\. Free some space"):
        settings.update(retention_days=3)
    settings.update(sync=False)
    assert settings["sync"] is False and box.waiting() == []
