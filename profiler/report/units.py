"""Numbers as people read them."""

from __future__ import annotations


def duration(seconds: float) -> str:
    """A duration with three significant digits and the unit that fits."""
    for limit, factor, unit in ((1e-6, 1e9, "ns"), (1e-3, 1e6, "µs"), (1.0, 1e3, "ms"), (100.0, 1.0, "s")):
        if seconds < limit:
            value = seconds * factor
            return f"{value:.{0 if value >= 100 or unit == 'ns' else 1 if value >= 10 else 2}f}{unit}"
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes // 60}h{minutes % 60:02d}m" if minutes >= 60 else f"{minutes}m{rest:02d}s"
