"""The GPUs that a process may use: the grammar of CUDA_VISIBLE_DEVICES (and of AMD's HIP_VISIBLE_DEVICES).

The rule it keeps: the result is that of the driver and of torch (``torch.cuda._parse_visible_devices``), also for invalid
tails and duplicates. UUIDs are compared in memory only.
Source: CUDA C++ Programming Guide, "CUDA Environment Variables".
"""

from __future__ import annotations

import re
from collections.abc import Sequence

PREFIXES = ("GPU-", "MIG-")
NUMBER = re.compile(r"[+-]?[0-9]+")  # as C's strtoul reads an entry: "1gpu2" is 1


def parse(text: str | None) -> list[int] | list[str] | None:
    """Return the devices that the variable names: numbers, or (beginnings of) UUIDs. None means it is not set: all devices.

    The first invalid entry ends the list. A device that is named twice empties it.
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
    """Return the positions of the UUIDs that begin so.

    The first beginning that fits none of them, or several, ends the list. One that is named twice empties it.
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
