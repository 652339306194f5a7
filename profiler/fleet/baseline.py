"""Make a baseline of an export: percentiles of jobs by class, in one signed file that anybody may be given."""

from __future__ import annotations

import json
import os
from collections import Counter
from collections.abc import Iterable
from itertools import pairwise
from pathlib import Path
from typing import Any

from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from profiler.errors import ArgumentValueError, ProfilerError
from profiler.fleet.export import MEASURES, put_text, rounded, weeks_in
from profiler.report.baseline import FORM, MOST_OF_NOTE, signed_part

Steps = list[tuple[float, int]]  # percentiles that rise: the value, and the hundredths of jobs at it or below
OF_TIME = ("version", "package_version", "torch", "cuda", "python")  # a class is of hardware and workload, not of these


def make_baseline(export: Path, output: Path, key_file: Path, note: str = "") -> tuple[int, str]:
    """Write a baseline, and return the number of its classes and the public key.

    The percentiles of a class are those of the jobs of all its cells together. Its number of jobs is that of its largest week,
    as a job may be of several.

    Args:
        export: the folder that was published.
        output: the file.
        key_file: the private key (Ed25519, PEM); made, for the owner alone, if it is not there.
        note: a description of its jobs, which every comparison shows; at most 100 letters.

    Raises:
        ArgumentValueError: both files are one, or the note is too long.
        ProfilerError: the folder holds no export, or no cell; the key cannot be used; or the file cannot be written.
    """
    if output.absolute() == key_file.absolute() or (output.exists() and key_file.exists() and output.samefile(key_file)):
        raise ArgumentValueError(f"{output} is your private key: give the baseline another name")
    if len(note) > MOST_OF_NOTE:
        raise ArgumentValueError(f"--note has at most {MOST_OF_NOTE} letters, not {len(note)}")
    weeks = list(weeks_in(export))
    by = [name for name in (weeks[0]["by"] if weeks else []) if name not in OF_TIME]
    classes = classes_of(weeks, by)
    if not classes:
        raise ProfilerError(f"{export} has no cell yet, so there is nothing to make a baseline of")
    body = {"by": by, "weeks": [weeks[0]["week"], weeks[-1]["week"]], "classes": classes} | ({"note": note} if note else {})
    private = key_in(key_file)
    public = private.public_key().public_bytes(serialization.Encoding.Raw, serialization.PublicFormat.Raw).hex()
    content = {"form": FORM, "body": body, "key": public, "signature": private.sign(signed_part(body)).hex()}
    put_text(output, json.dumps(content, indent=1) + "\n")
    return len(classes), public


def classes_of(weeks: Iterable[dict[str, Any]], by: list[str]) -> list[dict[str, Any]]:
    """Return the classes of the cells of these weeks, with their jobs and percentiles."""
    found: dict[tuple[str, ...], list[dict[str, Any]]] = {}
    jobs: dict[tuple[str, ...], int] = {}
    for week in weeks:
        of_week: Counter[tuple[str, ...]] = Counter()
        for cell in week["cells"]:
            names = tuple(cell[name] for name in by)
            found.setdefault(names, []).append(cell)
            of_week[names] += cell["jobs"]
        for names, many in of_week.items():  # a job of several weeks is one: no week is added to another
            jobs[names] = max(jobs.get(names, 0), many)
    return [
        {
            **dict(zip(by, names, strict=True)),
            "jobs": jobs[names],
            **{measure: joined for measure in MEASURES if (joined := _joined(measure, cells))},
        }
        for names, cells in sorted(found.items())
    ]


def _joined(measure: str, cells: list[dict[str, Any]]) -> dict[str, float]:
    """Return the percentiles of the jobs of all cells together, those that each cell has."""
    known = [cell for cell in cells if measure in cell]
    shares = set.intersection(*(set(cell[measure]) for cell in known)) if known else set()
    parts = [(cell["jobs"], sorted((value, int(name[1:])) for name, value in cell[measure].items())) for cell in known]
    return {share: rounded(_quantile(parts, int(share[1:]))) for share in sorted(shares, key=lambda name: int(name[1:]))}


def _quantile(parts: list[tuple[int, Steps]], share: int) -> float:
    """Return the value that so many hundredths of all jobs are at or below, linear between the percentiles of each part."""
    wanted, before, reached = share * sum(jobs for jobs, _ in parts), 0.0, 0.0
    for value in sorted({value for _, steps in parts for value, _ in steps}):
        up_to = sum(jobs * _share_below(steps, value) for jobs, steps in parts)
        if up_to >= wanted > reached:
            return before + (value - before) * (wanted - reached) / (up_to - reached)
        before, reached = value, sum(jobs * _share_at(steps, value) for jobs, steps in parts)
        if reached >= wanted:
            return value
    return before


def _share_at(steps: Steps, value: float) -> float:
    """Return the hundredths of jobs that are at the value or below; those above the highest percentile stand at it."""
    if value >= steps[-1][0]:
        return 100.0
    known = [share for step, share in steps if step == value]
    return known[-1] if known else _share_below(steps, value)


def _share_below(steps: Steps, value: float) -> float:
    """Return the hundredths of jobs that are below the value; those below the lowest percentile stand at it."""
    if value <= steps[0][0]:
        return 0.0
    for (low, low_share), (high, high_share) in pairwise(steps):
        if low < value <= high:
            return low_share + (high_share - low_share) * (value - low) / (high - low)
    return 100.0


def key_in(path: Path) -> Ed25519PrivateKey:
    """Return the private key of a file, which is made if it is not there.

    Raises:
        ProfilerError: it cannot be used.
    """
    try:
        if not path.exists():
            made = Ed25519PrivateKey.generate()
            form = (serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
            with os.fdopen(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "wb") as file:
                file.write(made.private_bytes(*form))
        found = serialization.load_pem_private_key(path.read_bytes(), password=None)
    except OSError as error:
        raise ProfilerError(f"{path} cannot be used: {error.strerror}") from None
    except (ValueError, TypeError, UnsupportedAlgorithm):
        raise ProfilerError(f"{path} is no private key in PEM without a password") from None
    if not isinstance(found, Ed25519PrivateKey):
        raise ProfilerError(f"{path} is no Ed25519 key")
    return found
