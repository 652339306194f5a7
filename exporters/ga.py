"""Google Analytics 4, Measurement Protocol: one POST, and never a second one of the same events.

The protocol cannot recognise a repetition. So any answer ends a payload, and one that may have arrived without an answer is
not sent again either.
"""

from __future__ import annotations

import json
from dataclasses import replace

from exporters.allowlist import GA_HEADERS
from exporters.config import Answer, Config, ExporterError
from exporters.transport import Http

PATH = "/mp/collect"


class Ga:
    """Posts events to a stream."""

    def __init__(self, config: Config) -> None:
        self._http = Http(config, GA_HEADERS)
        self._query = {"api_secret": config.secret, "measurement_id": config.measurement_id}
        self.where = self._http.where

    def send(self, body: bytes) -> Answer:
        """Make one attempt. Only a payload that cannot have arrived may be sent later."""
        answer, _, _ = self._http.post(body, self._query)
        if answer.verdict == "later" and answer.arrived:
            return replace(answer, verdict="refused", text=f"{answer.text}; not sent again, as it may have been counted")
        return answer

    def close(self) -> None:
        self._http.close()


def build(config: Config) -> Ga:
    """Return the transport for a stream."""
    return Ga(config)


def validation_of(config: Config) -> Config:
    """Return the validation server of a destination.

    Raises:
        ExporterError: none is known. An address with a path of its own might count the posted events.
    """
    if not config.address.endswith(PATH):
        raise ExporterError(f"no validation server is known beside {config.where}, only beside {PATH}.")
    address, where = (f"{text.removesuffix(PATH)}/debug{PATH}" for text in (config.address, config.where))
    return replace(config, address=address, where=where)


def check(config: Config, body: bytes) -> tuple[Answer, list[dict[str, str]]]:
    """Ask a validation server about a body. It keeps nothing, and checks neither the secret nor the stream's id.

    Args:
        config: from `validation_of`.
        body: the body.

    Returns:
        the answer, and the server's messages; none means that the body is valid.
    """
    http = Http(config, GA_HEADERS)
    try:
        answer, content, _ = http.post(body, {"api_secret": config.secret, "measurement_id": config.measurement_id})
    finally:
        http.close()
    try:
        return answer, list(json.loads(content)["validationMessages"])
    except (ValueError, KeyError, TypeError):
        return replace(answer, verdict="refused", text=f"{answer.text}, with an answer that is not the validation server's"), []


def checked_body(body: bytes) -> bytes:
    """Return the body with the word that makes the validation server strict."""
    return json.dumps({**json.loads(body), "validation_behavior": "ENFORCE_RECOMMENDATIONS"}).encode("utf-8")
