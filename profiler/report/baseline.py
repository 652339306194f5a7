"""A run beside the jobs of others: a baseline is one signed file of percentiles, and the comparison is made on this machine.

The rule it keeps: asking sends nothing, and a file whose signature does not fit is not used.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

from profiler.errors import ProfilerError
from profiler.records.causes import LOADER_START
from profiler.records.energy import sum_of
from profiler.records.histogram import NS
from profiler.records.plain_text import printable
from profiler.report.accounts import DATA_WAIT, Accounts

TYPE_CHECKING = False
if TYPE_CHECKING:
    from profiler.records.run import EpochRecord, Run


FORM = "epochmeter baseline 1"
ODD = (ValueError, KeyError, TypeError, AttributeError, OverflowError, RecursionError)  # of a file that is not what it seems
NEEDS = "a baseline's signature is checked by more packages: pip install 'epochmeter[fleet]'"
SHARE = "waiting"
PERCENTILE = re.compile(r"p([1-9]\d?)")
WORDS = {"waiting": "waiting for data", "s_per_sample": "time for a sample", "j_per_sample": "energy for a sample"}
MOST_OF_NOTE = 100  # letters
OF_WORKLOAD = ("s_per_sample", "j_per_sample")  # comparable within one workload alone


class Baseline(NamedTuple):
    """A file of percentiles.

    Attributes:
        classes: for each class its columns, ``jobs``, and of each measure its percentiles, ``p5`` to ``p95``.
        by: the columns that make a class.
        key: the public key that it was signed with, in hexadecimal digits.
        note: a description of its jobs, in the maker's words.
    """

    classes: list[dict[str, Any]]
    by: tuple[str, ...]
    key: str
    note: str = ""


def signed_part(body: Mapping[str, Any]) -> bytes:
    """Return the bytes that are signed."""
    return json.dumps(body, sort_keys=True, separators=(",", ":")).encode()


def read(path: Path, key: str = "") -> Baseline:
    """Return the baseline of a file.

    Args:
        path: the file.
        key: the public key that it must be signed with; "" for any.

    Raises:
        ProfilerError: it is none, its signature does not fit, or it is of another key.
    """
    try:
        content = json.loads(path.read_text("utf-8"))
        body, signed_by, signature = content["body"], content["key"], bytes.fromhex(content["signature"])
        if content["form"] != FORM:
            raise ValueError
        classes = [check_class(one, body["by"]) for one in body["classes"]]
        found = Baseline(classes, tuple(body["by"]), str(signed_by).lower(), printable(body.get("note", ""))[:MOST_OF_NOTE])
    except OSError as error:
        raise ProfilerError(f"{path} cannot be read: {error.strerror}") from None
    except ODD:
        raise ProfilerError(f"{path} is no baseline; 'epochmeter fleet baseline' makes one") from None
    _check(path, found.key, signature, signed_part(body))
    wanted = key.strip().lower()
    if wanted and wanted != found.key:
        raise ProfilerError(f"{path} is signed by {found.key[:16]}…, and not by {wanted[:16]}…")
    return found


def check_class(one: Any, by: Any) -> dict[str, Any]:
    """Return a class of a file, or a cell of an export.

    Raises:
        ValueError, KeyError, TypeError, AttributeError: it is none; see `ODD`.
    """
    if not by or not all(isinstance(one[name], str) for name in by) or type(one["jobs"]) is not int or one["jobs"] < 1:
        raise ValueError("it has no name, or no jobs")
    for measure in WORDS:
        steps = {int(PERCENTILE.fullmatch(name)[1]): float(step) for name, step in one.get(measure, {}).items()}  # type: ignore[index]
        values = [step for _, step in sorted(steps.items())]
        if not all(map(math.isfinite, values)) or values != sorted(values):
            raise ValueError("its percentiles do not rise")
    return dict(one)


def _check(path: Path, key: str, signature: bytes, content: bytes) -> None:
    try:
        from cryptography.exceptions import InvalidSignature
        from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey
    except ImportError:
        raise ProfilerError(NEEDS) from None
    try:
        Ed25519PublicKey.from_public_bytes(bytes.fromhex(key)).verify(signature, content)
    except (InvalidSignature, ValueError):
        raise ProfilerError(f"{path} was changed after it was signed: it is not used") from None


def beside(run: Run, whole: EpochRecord, accounts: Accounts, baseline: Baseline) -> list[dict[str, Any]]:
    """Return where a run stands among others of its class; empty if the baseline has no such class.

    Each entry has ``measure``, ``value``, ``jobs``, ``class``, ``note`` if there is one, and ``more_than`` or ``less_than``, a
    share of these jobs. Without either of the last two the value is near the middle.
    """
    own = _class_of(run, baseline)
    if own is None:
        return []
    named = ", ".join(printable(own[name]) for name in baseline.by if own[name])
    found = []
    for measure, value in _measures(run, whole, accounts):
        steps = sorted((int(name[1:]), float(step)) for name, step in own.get(measure, {}).items())
        if steps and (measure not in OF_WORKLOAD or "workload" in baseline.by):
            noted = {"note": baseline.note} if baseline.note else {}
            told = {"measure": measure, "value": value, "jobs": own["jobs"], "class": named, **noted}
            found.append(told | place_of(value, steps))
    return found


def place_of(value: float, steps: list[tuple[int, float]]) -> dict[str, float]:
    """Return the share of others, at least, that have less or more, by percentiles. Empty near the middle."""
    below = max((share for share, step in steps if step < value), default=0)
    above = min((share for share, step in steps if step > value), default=100)
    if below >= 50:
        return {"more_than": below / 100}
    return {"less_than": (100 - above) / 100} if above <= 50 else {}


def in_words(entry: Mapping[str, Any]) -> str:
    """Return an entry as a sentence."""
    value = f"{entry['value']:.0%}" if entry["measure"] == SHARE else f"{entry['value']:.3g}"
    of = f"{entry['jobs']:,} jobs on {entry['class']}" + (f" ({entry['note']})" if "note" in entry else "")
    what = f"{WORDS[entry['measure']]} {value}"
    for key, word in (("more_than", "more"), ("less_than", "less")):
        if key in entry:
            return f"{what} is {word} than in {entry[key]:.0%} of {of}"
    return f"{what} is as usual among {of}"


def _class_of(run: Run, baseline: Baseline) -> dict[str, Any] | None:
    """Return the class that the run is of: of those whose words its hardware's name contains, the one with the longest."""
    first = run.hardware.gpus[min(run.hardware.gpus)] if run.hardware.gpus else {}
    model = str(first.get("name", "") or run.hardware.cpu.get("family", ""))
    fits = [one for one in baseline.classes if all(_fits(name, one[name], run, model) for name in baseline.by)]
    return max(fits, key=lambda one: len(str(one.get("hardware", ""))), default=None)


def _fits(name: str, word: str, run: Run, model: str) -> bool:
    if name in ("hardware", "gpu", "cpu"):
        return bool(word) and (word == model or word in model.split())
    return word in (run.name, *run.said.values()) if name == "workload" else word in run.said.values()


def _measures(run: Run, whole: EpochRecord, accounts: Accounts) -> Iterator[tuple[str, float]]:
    """Yield the measures of the run's training as a fleet has them: a share, s for a sample, J for a sample."""
    train = whole.stages.get("train")
    if train is None or not train.elapsed_ns:
        return
    waited = sum(one.ns for one in accounts.of(DATA_WAIT, LOADER_START) if one.stage == "train")
    if train.phases:
        yield "waiting", waited / train.elapsed_ns
    samples = train.steps if train.samples is None else train.samples
    if samples:
        yield "s_per_sample", train.elapsed_ns / NS / samples
    used = run.energy().get("train")
    if used and train.samples:
        yield "j_per_sample", sum_of(used.values()).joules / train.samples
