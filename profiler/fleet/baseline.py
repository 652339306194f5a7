"""Make a baseline of an export: percentiles of jobs by class, in one signed file that anybody may be given."""

from __future__ import annotations

import json
import os
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from profiler.errors import ArgumentValueError, ProfilerError
from profiler.fleet.export import MEASURES, put_text, rounded, weeks_in
from profiler.report.baseline import FORM, signed_part

OF_TIME = ("version", "package_version", "torch", "cuda", "python")  # a class is of hardware and workload, not of these


def make_baseline(export: Path, output: Path, key_file: Path) -> tuple[int, str]:
    """Write a baseline, and return the number of its classes and the public key.

    A percentile of a class is the mean of that in its cells, by their jobs.

    Args:
        export: the folder that was published.
        output: the file.
        key_file: the private key (Ed25519, PEM); made, for the owner alone, if it is not there.

    Raises:
        ArgumentValueError: both files are one.
        ProfilerError: the folder holds no export, or no cell; the key cannot be used; or the file cannot be written.
    """
    if output.absolute() == key_file.absolute() or (output.exists() and key_file.exists() and output.samefile(key_file)):
        raise ArgumentValueError(f"{output} is your private key: give the baseline another name")
    weeks = list(weeks_in(export))
    by = [name for name in (weeks[0]["by"] if weeks else []) if name not in OF_TIME]
    classes = _classes(weeks, by)
    if not classes:
        raise ProfilerError(f"{export} has no cell yet, so there is nothing to make a baseline of")
    body = {"by": by, "weeks": [weeks[0]["week"], weeks[-1]["week"]], "classes": classes}
    private = key_in(key_file)
    public = private.public_key().public_bytes(serialization.Encoding.Raw, serialization.PublicFormat.Raw).hex()
    content = {"form": FORM, "body": body, "key": public, "signature": private.sign(signed_part(body)).hex()}
    put_text(output, json.dumps(content, indent=1) + "\n")
    return len(classes), public


def _classes(weeks: Iterable[dict[str, Any]], by: list[str]) -> list[dict[str, Any]]:
    found: dict[tuple[str, ...], list[dict[str, Any]]] = {}
    for week in weeks:
        for cell in week["cells"]:
            found.setdefault(tuple(cell[name] for name in by), []).append(cell)
    return [
        {
            **dict(zip(by, names, strict=True)),
            "jobs": sum(cell["jobs"] for cell in cells),
            **{measure: mean for measure in MEASURES if (mean := _mean(measure, cells))},
        }
        for names, cells in sorted(found.items())
    ]


def _mean(measure: str, cells: list[dict[str, Any]]) -> dict[str, float]:
    """Return the mean of each percentile that all cells have, by their jobs."""
    known = [cell for cell in cells if measure in cell]
    shares = set.intersection(*(set(cell[measure]) for cell in known)) if known else set()
    jobs = sum(cell["jobs"] for cell in known)
    return {
        share: rounded(sum(cell["jobs"] * cell[measure][share] for cell in known) / jobs)
        for share in sorted(shares, key=lambda name: int(name[1:]))
    }


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
