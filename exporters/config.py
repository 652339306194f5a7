"""What an exporter is told, what a destination answers, and what is said when an exporter cannot be made."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Literal, Protocol

Answered = Callable[[str], None]  # told what the destination answered
Record = Callable[[str, bytes], Answered]  # where the bytes go, and the bytes; called before they go


class ExporterError(ValueError):
    """An exporter that does not exist, cannot be made, or may not send; the text says why, and what helps."""


@dataclass(frozen=True)
class Config:
    """What an exporter needs to know.

    Attributes:
        target: a name in `TARGETS`.
        protocol: "http/protobuf", "grpc", "ga4" or "prometheus".
        address: the whole address that is posted to; for gRPC the collector's, for Prometheus the one that is scraped.
        headers: for this destination alone; names in lower case.
        certificate: a file with the certificates to trust.
        client_certificate, client_key: files with our own certificate and its key.
        timeout: seconds that one attempt may take.
        compression: "gzip" or "none".
        measurement_id, secret: of a Google Analytics stream.
        usage: whether usage counters may be part of it.
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


@dataclass(frozen=True)
class Answer:
    """What came of one attempt to send.

    Attributes:
        verdict: "taken"; "refused" for good; or "later": what was sent may be sent again.
        text: what was answered, in words.
        wait_s: how long the destination asks to be left alone, or None where it does not say.
        partly: how many data points it did not take of what it took, or None.
        arrived: whether the destination may have got it, whatever it answered.
    """

    verdict: Literal["taken", "refused", "later"]
    text: str
    wait_s: float | None = None
    partly: int | None = None
    arrived: bool = True


class Transport(Protocol):
    """Sends bytes to one destination."""

    where: str  # the address as it may be shown

    def send(self, body: bytes) -> Answer:
        """One attempt, with no other after it. Does not raise for anything the network or the destination does."""

    def close(self) -> None:
        """Lets go of connections."""
