"""Render a recorded run. A `Run` goes in, a document or text comes out; nothing here knows the profiler."""
