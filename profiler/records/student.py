"""Student's t: how wide an interval of few values must be."""

from __future__ import annotations

import math
from statistics import NormalDist

CONFIDENCE = 0.95


def student(freedom: float, confidence: float = CONFIDENCE) -> float:
    """Return the quantile of Student's t for a two-sided interval.

    Args:
        freedom: the degrees of freedom, which need not be whole.
        confidence: how sure the interval is to be.

    With one and two degrees of freedom it is exact, from three on within 3 %: the series is that of Abramowitz and Stegun,
    Handbook of Mathematical Functions, 26.7.5.
    """
    upto = (1 + confidence) / 2
    if freedom < 2:
        return math.tan(math.pi * (upto - 0.5))
    if freedom < 3:
        return (2 * upto - 1) / math.sqrt(2 * upto * (1 - upto))
    z = NormalDist().inv_cdf(upto)
    terms = (
        (z**3 + z) / 4,
        (5 * z**5 + 16 * z**3 + 3 * z) / 96,
        (3 * z**7 + 19 * z**5 + 17 * z**3 - 15 * z) / 384,
        (79 * z**9 + 776 * z**7 + 1482 * z**5 - 1920 * z**3 - 945 * z) / 92160,
    )
    return z + sum(term / freedom**power for power, term in enumerate(terms, start=1))
