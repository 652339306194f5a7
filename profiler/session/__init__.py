"""The room where the parts are put together: `Profiler`, `epochmeter run` and the demo."""
