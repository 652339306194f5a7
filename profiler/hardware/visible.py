"""Which GPUs a process may use: the grammar of CUDA_VISIBLE_DEVICES (and of AMD's HIP_VISIBLE_DEVICES).

The rule it keeps: it answers as the driver and torch do (``torch.cuda._parse_visible_devices``), invalid tails and
duplicates included. UUIDs are compared in memory alone.
Source: CUDA C++ Programming Guide, "CUDA Environment Variables".
"""

from __future__ import annotations

import re
from collections.abc import Sequence

PREFIXES = ("GPU-", "MIG-")
NUMBER = re.compile(r"[+-]?[0-9]+")  # what C's strtoul reads of an entry: "1gpu2" is 1


def parse(text: str | None) -> list[int] | list[str] | None:
    """The devices that the variable names: numbers, or (beginnings of) UUIDs; None where it is not set: all.

    The first entry that is not valid ends the list; a device that is named twice empties it.
    """
    if text is None:
        return None
    for prefix in PREFIXES:
        if text.startswith(prefix):
            return _uuids(text, prefix)
    return _numbers(text)


def _numbers(text: str) -> list[int]:
    found: list[int] = []
    for entry in text.split(","):
        number = NUMBER.match(entry.strip())
        if number is None or int(number.group()) < 0:
            break
        if int(number.group()) in found:
            return []
        found.append(int(number.group()))
    return found


def _uuids(text: str, prefix: str) -> list[str]:
    found: list[str] = []
    for entry in text.split(","):
        if entry in found:
            return []
        if not entry.startswith(prefix):
            break
        found.append(entry)
    return found


def ordinals(beginnings: Sequence[str], uuids: Sequence[str]) -> list[int]:
    """Which of the UUIDs are meant by their beginnings.

    The first beginning that fits none of them, or several, ends the list; one that is meant twice empties it.
    """
    found: list[int] = []
    for beginning in beginnings:
        fitting = [index for index, uuid in enumerate(uuids) if uuid.startswith(beginning)]
        if len(fitting) != 1:
            break
        if fitting[0] in found:
            return []
        found.append(fitting[0])
    return found
