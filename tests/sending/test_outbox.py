"""The outbox alone: what it keeps, in which order, what it gives up, and that it counts all of that."""

from __future__ import annotations

import json
import os
import re
import threading
from pathlib import Path

import pytest

from exporters.entry import DestinationKey, Entry, Head, UnreadableError
from exporters.outbox import REASONS, Outbox
from profiler.config.folder import Folder

KEY = DestinationKey("otlp", "http/protobuf", "http://collector:4318/v1/metrics", None)
GA = DestinationKey("ga", "ga4", "https://www.google-analytics.com/mp/collect", None)
DAY = 86_400.0


class Clock:
    def __init__(self) -> None:
        self.now = 1_800_000_000.0

    def __call__(self) -> float:
        return self.now


def put(
    box: Outbox, run: str, order: str, body: bytes = b"body", started: int = 1, key: DestinationKey = KEY, **head: float
) -> None:
    box.put(Head(key, run, head.get("created", box.now()), head.get("until")), started, order, body)


def path_of(folder: Path, entry: Entry) -> Path:
    return folder / entry.state / entry.file


def names(box: Outbox) -> list[str]:
    return [entry.name.split("-", 1)[1] for entry in box.waiting()]


def test_what_is_put_is_there_and_whole(tmp_path: Path) -> None:
    box = Outbox(Folder(tmp_path))
    put(box, "aa", "00000001", b"\x00\n\xff" * 1000)
    (entry,) = box.waiting()
    head = box.head(entry)
    assert (head.key, head.run, head.until) == (KEY, "aa", None)
    assert box.body(entry) == b"\x00\n\xff" * 1000
    if os.name == "posix":
        assert path_of(tmp_path, entry).stat().st_mode & 0o777 == 0o600
        assert path_of(tmp_path, entry).parent.stat().st_mode & 0o777 == 0o700
    assert list((tmp_path / "new").iterdir()) == []


def test_oldest_run_comes_first_despite_the_clock(tmp_path: Path) -> None:
    clock = Clock()
    for run, started, order in (("bb", 20, "00000001"), ("aa", 10, "final"), ("aa", 10, "00000002"), ("aa", 10, "00000010")):
        clock.now -= 5 * DAY  # a clock that is set back, again and again
        put(Outbox(Folder(tmp_path), clock=clock), run, order, started=started)
    assert names(Outbox(Folder(tmp_path))) == ["aa-00000002", "aa-00000010", "aa-final", "bb-00000001"]


def test_the_same_name_replaces(tmp_path: Path) -> None:
    box = Outbox(Folder(tmp_path))
    put(box, "aa", "final", b"1")
    put(box, "aa", "final", b"2")
    (entry,) = box.waiting()
    assert box.body(entry) == b"2"


def test_only_one_of_many_gets_an_entry(tmp_path: Path) -> None:
    box = Outbox(Folder(tmp_path))
    for number in range(50):
        put(box, "aa", f"{number:08d}")
    got: list[str] = []

    def take() -> None:
        got.extend(claimed.name for entry in box.waiting() if (claimed := box.claim(entry)) is not None)

    threads = [threading.Thread(target=take) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(got) == len(set(got)) == 50


def test_an_entrys_life(tmp_path: Path) -> None:
    box = Outbox(Folder(tmp_path))
    put(box, "aa", "00000001")
    claimed = box.claim(box.waiting()[0])
    assert claimed is not None and box.waiting() == []
    box.put_back(claimed)
    claimed = box.claim(box.waiting()[0])
    assert claimed is not None
    box.set_aside(claimed, "HTTP 400")
    ((entry, why),) = box.aside()
    assert (box.waiting(), why, entry.run) == ([], "HTTP 400", "aa")
    assert box.take_up_again() == 1
    assert (names(box), box.aside()) == (["aa-00000001"], [])
    claimed = box.claim(box.waiting()[0])
    assert claimed is not None
    box.delivered(claimed)
    assert (box.waiting(), box.dropped()) == ([], {})
    assert not [path for path in tmp_path.rglob("*") if path.is_file()]


def test_room_is_made_from_contained_then_oldest(tmp_path: Path) -> None:
    body = os.urandom(2_000)
    box = Outbox(Folder(tmp_path), max_bytes=11_000)
    for run, started, order in (("aa", 1, "00000001"), ("bb", 2, "00000001"), ("bb", 2, "00000002"), ("cc", 3, "00000001")):
        put(box, run, order, body, started)
    put(box, "dd", "00000001", body, 4)
    assert names(box) == ["aa-00000001", "bb-00000002", "cc-00000001", "dd-00000001"]
    assert box.dropped() == {"thinned": 1}
    put(box, "ee", "00000001", body, 5)
    assert names(box) == ["bb-00000002", "cc-00000001", "dd-00000001", "ee-00000001"]
    assert box.dropped() == {"thinned": 1, "full": 1}


def test_googles_events_do_not_contain_each_other(tmp_path: Path) -> None:
    box = Outbox(Folder(tmp_path), max_bytes=7_000)
    for order in ("ga000", "ga001", "ga002"):
        put(box, "aa", order, os.urandom(2_000), key=GA)
    assert names(box) == ["aa-ga001", "aa-ga002"]
    assert box.dropped() == {"full": 1}


def test_what_was_refused_goes_before_what_waits(tmp_path: Path) -> None:
    box = Outbox(Folder(tmp_path), max_bytes=8_000)
    put(box, "aa", "final", os.urandom(2_000), 1)
    put(box, "zz", "final", os.urandom(2_000), 9)
    claimed = box.claim(box.waiting()[1])
    assert claimed is not None
    box.set_aside(claimed, "HTTP 400")
    put(box, "bb", "final", os.urandom(2_000), 2)
    put(box, "cc", "final", os.urandom(2_000), 3)
    assert (names(box), box.aside(), box.dropped()) == (["aa-final", "bb-final", "cc-final"], [], {"full": 1})


def test_expired_entry_is_dropped_and_counted(tmp_path: Path) -> None:
    clock = Clock()
    put(Outbox(Folder(tmp_path), clock=clock), "aa", "final", started=1)
    put(Outbox(Folder(tmp_path), clock=clock), "bb", "ga000", started=2, key=GA, until=clock.now + 3 * DAY)
    clock.now += 2.9 * DAY
    box = Outbox(Folder(tmp_path), max_age_s=30 * DAY, clock=clock)
    box.expire()
    assert len(box.waiting()) == 2
    clock.now += 0.2 * DAY
    box = Outbox(Folder(tmp_path), max_age_s=30 * DAY, clock=clock)
    box.expire()
    assert (names(box), box.dropped()) == (["aa-final"], {"expired": 1})
    clock.now += 27 * DAY
    Outbox(Folder(tmp_path), max_age_s=30 * DAY, clock=clock).expire()
    assert (names(box), box.dropped()) == ([], {"expired": 2})


def test_a_clock_that_is_set_gives_nothing_up(tmp_path: Path) -> None:
    """Forward by years while the process runs, or backward at any time."""
    clock = Clock()
    box = Outbox(Folder(tmp_path), max_age_s=DAY, clock=clock)
    put(box, "aa", "final")
    clock.now += 1000 * DAY
    box.expire()
    assert names(box) == ["aa-final"]
    clock.now -= 3000 * DAY
    Outbox(Folder(tmp_path), max_age_s=DAY, clock=clock).expire()
    assert names(box) == ["aa-final"]


def test_requested_wait_ends_when_clock_goes_back(tmp_path: Path) -> None:
    clock = Clock()
    box = Outbox(Folder(tmp_path), clock=clock)
    box.troubles.note("digest", "HTTP 429", 600.0)
    clock.now += 100
    assert box.troubles.of("digest") == ("HTTP 429", 500.0)
    clock.now -= 1000 * DAY
    assert box.troubles.of("digest") == ("HTTP 429", 0.0)
    clock.now += 2000 * DAY
    assert box.troubles.of("digest") == ("HTTP 429", 0.0)
    box.troubles.end("digest")
    assert box.troubles.of("digest") == ("", 0.0)


@pytest.mark.parametrize(
    "spoil",
    [
        lambda data: b"",
        lambda data: data[: len(data) // 2],
        lambda data: data[:-1],
        lambda data: data.replace(b"{", b"[", 1),
        lambda data: b"\xff" * 100,
        lambda data: data.replace(b'"sha256": "', b'"sha256": "0'),
    ],
)
def test_a_damaged_entry_is_seen(tmp_path: Path, spoil: object) -> None:
    box = Outbox(Folder(tmp_path))
    put(box, "aa", "final", b"body" * 50)
    (entry,) = box.waiting()
    path = path_of(tmp_path, entry)
    path.write_bytes(spoil(path.read_bytes()))  # type: ignore[operator]
    with pytest.raises(UnreadableError):
        box.body(entry)


def test_newer_entry_is_left_alone(tmp_path: Path) -> None:
    box = Outbox(Folder(tmp_path))
    put(box, "aa", "final")
    (entry,) = box.waiting()
    path = path_of(tmp_path, entry)
    path.write_bytes(path.read_bytes().replace(b'"version": 1', b'"version": 9'))
    box.expire()
    assert (names(box), box.dropped()) == (["aa-final"], {})
    with pytest.raises(OSError, match="newer epochmeter"):
        box.head(entry)


@pytest.mark.parametrize(("key", "order", "left", "dropped"), [(KEY, "final", 1, {}), (GA, "ga000", 0, {"unknown": 1})])
def test_what_a_killed_process_was_sending(
    tmp_path: Path, key: DestinationKey, order: str, left: int, dropped: dict[str, int]
) -> None:
    """Sent again where that does no harm; given up where it would be counted twice."""
    box = Outbox(Folder(tmp_path))
    put(box, "aa", order, key=key)
    assert box.claim(box.waiting()[0]) is not None
    box.recover("another destination", locked=True)
    box.recover(key.digest, locked=False)  # on a system without locks, only what is old is nobody's
    assert (box.waiting(), box.dropped()) == ([], {})
    box.recover(key.digest, locked=True)
    assert (len(box.waiting()), box.dropped()) == (left, dropped)


def test_what_was_delivered_once_is_known(tmp_path: Path) -> None:
    box = Outbox(Folder(tmp_path))
    put(box, "aa", "ga000", started=7, key=GA)
    claimed = box.claim(box.waiting()[0])
    assert claimed is not None and box.knows(7, "aa", "ga000")
    box.delivered(claimed, once=True)
    assert box.knows(7, "aa", "ga000") and not box.knows(7, "aa", "ga001")
    put(box, "aa", "ga001", started=7, key=GA)
    box.drop(box.waiting()[0], "expired")
    assert box.knows(7, "aa", "ga001")


def test_old_unfinished_file_is_removed(tmp_path: Path) -> None:
    box = Outbox(Folder(tmp_path))
    put(box, "aa", "final")
    part = tmp_path / "new" / "0123456789abcdef.part"
    users = tmp_path / "new" / "thesis.tex"
    users.write_text("a file that is not ours")
    os.utime(users, (0, 0))
    part.write_bytes(b"half")
    box.expire()
    assert part.exists()
    os.utime(part, (0, 0))
    Outbox(Folder(tmp_path)).expire()  # one looks at all entries now and then
    assert not part.exists() and users.exists()


def test_every_reason_has_its_words() -> None:
    assert all(reason.isalpha() and text for reason, text in REASONS.items())


def test_missing_folder_is_an_empty_outbox(tmp_path: Path) -> None:
    box = Outbox(Folder(tmp_path / "nowhere"))
    box.expire()
    assert (box.waiting(), box.aside(), box.dropped(), list(box.open_runs())) == ([], [], {}, [])


def test_open_runs_are_noted_and_closed(tmp_path: Path) -> None:
    box = Outbox(Folder(tmp_path))
    box.open_run("aa", {"log": "x", "started_ns": 1})
    (tmp_path / "open" / "spoilt.json").write_text("{")
    ((run, about, age),) = box.open_runs()
    assert (run, about["log"]) == ("aa", "x") and age < 60
    assert json.loads((tmp_path / "open" / "aa.json").read_text())["version"] == 1
    box.close_run("aa")
    assert list(box.open_runs()) == []


# ---- one entry a run, and what it costs ----------------------------------------------------------------------------


def test_last_word_replaces_the_data_so_far(tmp_path: Path) -> None:
    box = Outbox(Folder(tmp_path))
    for body in (b"one", b"two"):
        put(box, "aa", "00000000", body)
    put(box, "bb", "00000000")
    box.put(Head(KEY, "aa", box.now()), 1, "final", b"all", replaces="00000000")
    assert names(box) == ["aa-final", "bb-00000000"] and box.dropped() == {}


def test_older_data_does_not_replace_newer(tmp_path: Path) -> None:
    """It was being sent when the run put its next data into the outbox."""
    box = Outbox(Folder(tmp_path))
    put(box, "aa", "00000000", b"one")
    claimed = box.claim(box.waiting()[0])
    assert claimed is not None
    put(box, "aa", "00000000", b"two")
    box.put_back(claimed)
    assert [box.body(entry) for entry in box.waiting()] == [b"two"] and box.under_way() == []


def test_cost_does_not_grow_with_what_waits(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    looks = 0
    for number in range(50):
        put(Outbox(Folder(tmp_path)), f"{number:02x}", "final")
    real = Folder.sizes

    def sizes(folder: Folder, form: re.Pattern[str]) -> list[tuple[str, int]]:
        nonlocal looks
        looks += 1
        return real(folder, form)

    monkeypatch.setattr(Folder, "sizes", sizes)
    box = Outbox(Folder(tmp_path))
    for number in range(50):
        put(box, f"f{number:02x}", "final")
    assert looks == 3  # one look at each of three folders, at the first put
    read = 0
    real_line = Folder.first_line

    def first_line(folder: Folder, name: str, most: int) -> bytes:
        nonlocal read
        read += 1
        return real_line(folder, name, most)

    monkeypatch.setattr(Folder, "first_line", first_line)
    for _ in range(3):
        box.expire()
        assert len([box.head(entry) for entry in box.waiting()]) == 100
    assert read == 100  # each head once
