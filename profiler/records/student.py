"""Student's t: how wide an interval of few values must be."""

from __future__ import annotations

import math

FEW = (12.706, 4.303, 3.182, 2.776, 2.571, 2.447, 2.365, 2.306, 2.262, 2.228)  # 97.5 % quantiles, 1 to 10 degrees of freedom
MORE = ((20, 2.228), (30, 2.086), (60, 2.042), (120, 2.000), (math.inf, 1.980))  # up to so many degrees: that of the fewest


def student(freedom: int) -> float:
    """Return the 97.5 % quantile of Student's t. Between two known ones it is the larger."""
    if freedom <= len(FEW):
        return FEW[max(freedom, 1) - 1]
    return next(value for limit, value in MORE if freedom <= limit)
