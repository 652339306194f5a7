"""Stand-ins for tests: a clock to turn, a GPU, an exporter that keeps its data; see `profiler.testing`."""

from __future__ import annotations

from profiler.testing import FakeClock, FakeDevice, FakeGpu, FakeNvml, RecordingExporter

__all__ = ["FakeClock", "FakeDevice", "FakeGpu", "FakeNvml", "RecordingExporter"]
