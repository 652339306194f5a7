"""Renders a recorded run. Pure: a `Run` goes in, a document or text comes out; the profiler itself is not known here."""

from __future__ import annotations

from profiler.report.document import document
from profiler.report.text import text

__all__ = ["document", "text"]
