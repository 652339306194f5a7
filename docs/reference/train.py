"""The run whose payload docs/privacy.md shows."""

import time

from profiler import Profiler

with Profiler("reference") as prof:
    for _ in prof.epochs(2):
        for _ in prof.train(range(3), samples=32):
            with prof.phase("forward"):
                time.sleep(0.02)
            with prof.phase("my own phase"):
                time.sleep(0.01)
        for _ in prof.validate(range(2), samples=32):
            time.sleep(0.01)
    for _ in prof.infer(range(3), samples=1):
        time.sleep(0.05)
