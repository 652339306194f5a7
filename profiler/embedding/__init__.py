"""Support for packages that embed epochmeter: usage counters, crash reports, declared commands.

This file stays empty of imports, because importing `Telemetry` must cost next to nothing.
"""
