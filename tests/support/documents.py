"""Compare two documents of a run."""

from __future__ import annotations

from typing import Any

import pytest


def near(a: Any, b: Any) -> bool:
    """Return True if two documents are equal but for the last digits of floating-point numbers."""
    if isinstance(a, dict):
        return a.keys() == b.keys() and all(near(a[key], b[key]) for key in a)
    if isinstance(a, list):
        return len(a) == len(b) and all(near(x, y) for x, y in zip(a, b, strict=True))
    return bool(a == pytest.approx(b, rel=1e-9)) if isinstance(a, float) else bool(a == b)
