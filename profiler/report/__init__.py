"""Renders a recorded run. Pure: a `Run` goes in, a document or text comes out; the profiler itself is not known here."""
