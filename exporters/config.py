"""The configuration of an exporter, the answer of a destination, and the error if an exporter cannot be made."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Literal, Protocol

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


class Transport(Protocol):
    """Sends bytes to one destination."""

    where: str  # the address as it may be shown

    def send(self, body: bytes) -> Answer:
        """Make one attempt. No error of the network or the destination is raised."""

    def close(self) -> None:
        """Close the connections."""
