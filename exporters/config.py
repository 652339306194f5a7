"""The configuration of an exporter, the answer of a destination, and the error if an exporter cannot be made."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal, Protocol

if TYPE_CHECKING:
    import os

MAX_SAID = 400  # characters of an answer
Answered = Callable[[str], None]  # receives the answer of the destination
Record = Callable[[str, bytes], Answered]  # receives the address and the bytes, before they are sent


class ExporterError(ValueError):
    """An exporter does not exist, cannot be made, or may not send. The text says why, and what helps."""


@dataclass(frozen=True)
class Config:
    """The configuration of one exporter.

    Attributes:
        target: a name in `TARGETS`.
        protocol: "http/protobuf", "grpc", "ga4" or "prometheus".
        address: the whole address that is posted to; for gRPC the collector's, for Prometheus the scraped one.
        headers: for this destination alone; names in lower case.
        certificate: a file with the certificates to trust.
        client_certificate: a file with our own certificate.
        client_key: a file with its key.
        timeout: seconds that one attempt may take.
        compression: "gzip" or "none".
        measurement_id: of a Google Analytics stream.
        secret: of a Google Analytics stream.
        usage: True if usage counters may be part of the data.
        where: the address as it may be shown.
        proxies: by scheme; no other proxy is used.
    """

    target: str
    protocol: str = "http/protobuf"
    address: str = ""
    headers: Mapping[str, str] = field(default_factory=dict, repr=False)
    certificate: str | None = None
    client_certificate: str | None = None
    client_key: str | None = field(default=None, repr=False)
    timeout: float = 10.0
    compression: str = "gzip"
    measurement_id: str = ""
    secret: str = field(default="", repr=False)
    usage: bool = True
    where: str = "the destination"
    proxies: Mapping[str, str] = field(default_factory=dict, repr=False)


@dataclass(frozen=True)
class Answer:
    """The result of one attempt to send.

    Attributes:
        verdict: "taken"; "refused" for good; or "later": it may be sent again.
        text: the answer in words.
        wait_s: how long the destination asks to be left alone, or None if it does not say.
        partly: the number of data points it did not accept of an accepted payload, or None.
        arrived: True if the destination may have received it, even if it answered with an error.
    """

    verdict: Literal["taken", "refused", "later"]
    text: str
    wait_s: float | None = None
    partly: int | None = None
    arrived: bool = True

    def __post_init__(self) -> None:
        """Make the text one printable line: a collector's words go to logs and terminals."""
        object.__setattr__(self, "text", "".join(filter(str.isprintable, " ".join(self.text.split())))[:MAX_SAID])


class Transport(Protocol):
    """Sends bytes to one destination."""

    where: str  # the address as it may be shown

    def send(self, body: bytes) -> Answer:
        """Make one attempt. No error of the network or the destination is raised."""

    def close(self) -> None:
        """Close the connections."""


class Files(Protocol):
    """A folder on this machine. The caller brings it, and is the one who knows which folders and files can be trusted.

    Every method but `names` and `sizes` raises an OSError if it fails, or if the folder or file cannot be trusted.
    """

    def sub(self, name: str) -> Files:
        """Return a folder in this one."""

    def names(self, form: re.Pattern[str]) -> list[str]:
        """Return the files whose names have this form, sorted."""

    def sizes(self, form: re.Pattern[str]) -> list[tuple[str, int]]:
        """Return the same with each file's size in bytes."""

    def status(self, name: str) -> os.stat_result:
        """Return a file's status."""

    def has(self, name: str) -> bool:
        """Return True if there is such a file."""

    def read(self, name: str, most: int = ...) -> bytes:
        """Return a file's content, which is not longer than this."""

    def first_line(self, name: str, most: int) -> bytes:
        """Return a file's first line, or its first bytes."""

    def replace(self, name: str, data: bytes, *, durable: bool = False, by: Any = None) -> None:
        """Write a whole file, by way of a new one in the folder ``by``."""

    def append(self, name: str, data: bytes, *, durable: bool = False) -> None:
        """Append to a file."""

    def mark(self, name: str) -> None:
        """Make an empty file, if it is not there."""

    def move(self, name: str, into: Any) -> None:
        """Move a file into another folder."""

    def remove(self, name: str) -> None:
        """Remove a file."""

    def sync(self) -> None:
        """Put the names of the files on disk."""
