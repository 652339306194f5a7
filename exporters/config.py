"""What an exporter is told, and what it says when it cannot be made."""

from __future__ import annotations

from dataclasses import dataclass


class ExporterError(ValueError):
    """An exporter that does not exist or cannot be made; the text says what is there and what helps."""


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
