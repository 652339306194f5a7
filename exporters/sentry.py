"""Crash reports to Sentry: one POST of an envelope that Sentry's own library has made.

That library's transport is not used: its worker asks nobody for consent, and a program that traces its requests would add
to ours. The envelope itself holds the authorisation (its ``dsn``), and older servers find it in a header.
"""

from __future__ import annotations

import gzip
import json
from urllib.parse import urlsplit

from exporters.allowlist import SENTRY_HEADERS
from exporters.config import Answer, Config
from exporters.transport import Http


class Sentry:
    """Posts to a project."""

    def __init__(self, config: Config) -> None:
        self._config = config
        self._key = ""
        self._http: Http | None = None
        self.where = config.where

    def send(self, body: bytes) -> Answer:
        """Make one attempt."""
        key = urlsplit(json.loads(body.partition(b"\n")[0])["dsn"]).username or ""
        if self._http is None or key != self._key:
            self.close()
            auth = SENTRY_HEADERS["x-sentry-auth"].replace("<key>", key)
            self._http, self._key = Http(self._config, {**SENTRY_HEADERS, "x-sentry-auth": auth}), key
        answer, _, _ = self._http.post(gzip.compress(body, mtime=0))
        return answer

    def close(self) -> None:
        http, self._http = self._http, None
        if http is not None:
            http.close()


def build(config: Config) -> Sentry:
    """Return the transport for a project."""
    return Sentry(config)
