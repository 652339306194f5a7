"""What an exporter is told, and what it says when it cannot be made."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

Answered = Callable[[str], None]  # told what the destination answered
Record = Callable[[str, bytes], Answered]  # where the bytes go, and the bytes; called before they go
Release = Callable[[str, bytes], Answered]  # the same, asked by an exporter; raises where they may not go


class ExporterError(ValueError):
    """An exporter that does not exist, cannot be made, or may not send; the text says why, and what helps."""


@dataclass(frozen=True)
class Config:
    """What an exporter needs to know.

    Attributes:
        target: a name in `TARGETS`.
        endpoint: the destination's base URL, or None for the standard environment variables or the default.
        protocol: "http/protobuf".
        timeout: seconds one export may take, retries included.
    """

    target: str
    endpoint: str | None = None
    protocol: str = "http/protobuf"
    timeout: float = 10.0
