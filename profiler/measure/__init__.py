"""Time: clocks, spans, passes, the timer, and the observer of loops that were not written for us."""
