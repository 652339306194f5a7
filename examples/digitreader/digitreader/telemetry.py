"""What digitreader learns of how it is used: this is all of it. Users see it with ``digitreader telemetry schema``."""

from digitreader import __version__
from profiler import Telemetry

telemetry = Telemetry(
    "digitreader",
    __version__,
    features=("augmentation", "early_stop"),
    commands={"train": ("epochs", "augment", "output"), "predict": ("model",)},
    facts={"augment": bool, "accuracy": (0.9, 0.95, 0.97, 0.98, 0.99)},  # of each training, beside how it ended
    exporter="otlp",
    settings={"otlp_endpoint": "http://localhost:4318"},  # here stands the address of the package's own collector
    crash_dsn="http://public@localhost:9000/1",  # and here that of its Sentry
)
